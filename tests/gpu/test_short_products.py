"""gradient="auto" computes everything where products are so short that launches take the time."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from kernels import LinearCrossEntropyLoss
from kernels.linear_cross_entropy import config
from tests.linear_cross_entropy import cases


@pytest.mark.parametrize(("least", "path", "ordered"), [(1e18, "dense", False), (0.0, "corrected", True)])
def test_auto_chooses_by_size(least: float, path: str, ordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then with the exact path's bits and without an order; otherwise it models, and "corrected" always does."""
    monkeypatch.setattr(config, "LEAST_MODELLED_FLOPS", least)
    generator = torch.Generator("cuda").manual_seed(0)
    input, weight, target = cases.KINDS["zipf"](2048, 512, 32768, generator, strength=12.0)
    input, weight = (t.bfloat16().requires_grad_() for t in (input, weight))
    gradients, paths = {}, {}
    for gradient in ("auto", "corrected", "exact"):
        module = LinearCrossEntropyLoss(gradient=gradient, order="tree", label_smoothing=0.1, return_stats=True)
        loss, stats = module(input, weight, target)
        gradients[gradient] = torch.autograd.grad(loss, (input, weight))
        paths[gradient] = stats.path
        if gradient == "auto":
            assert (module.vocabulary_order is not None) == ordered
    assert paths == {"auto": path, "corrected": "corrected", "exact": "dense"}
    equal = all(torch.equal(a, b) for a, b in zip(gradients["auto"], gradients["exact"], strict=True))
    assert equal == (path == "dense")
