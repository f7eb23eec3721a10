"""Every adapter that runs on a CPU without Triton, against the contract in fp64; and what every adapter refuses."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.case import Case
from implementations.baseline import eager_loss
from implementations.cce import build as build_cce
from implementations.contract import Implementation
from implementations.registry import REGISTRY, load
from implementations.torchtune import build as build_torchtune
from tests.implementations.reference import loss_and_gradients, make_tensors, upstream, worst_error

TOLERANCE = 1e-5  # fp32 against fp64, relative; fp32's own rounding is 6e-8
# On a CPU nothing is modelled: what skips work on a GPU is the exact path there
OURS_CORRECTED = ["ours", "ours-no-sort", "ours-average-logit-sort", "ours-no-tail", "ours-no-first-order"]
OURS_CORRECTED += ["ours-token-groups", "ours-corrected"]
OURS_EXACT = ["ours-exact", "ours-paper-no-filter", "ours-fused-no-filter", *OURS_CORRECTED]
FUSED = ["ours-fused", "ours-fused-no-filter"]
OURS_FILTERED = ["ours-paper", "ours-paper-no-sort", "ours-fused"]
ON_CPU = ["baseline", "torchtune-chunked", "torch-linear-cross-entropy", *OURS_EXACT, *OURS_FILTERED]
PEERS = [name for name in REGISTRY if name != "cce-no-sort"]


def case(**settings: Any) -> Case:
    defaults = {"tokens": 16, "hidden_size": 32, "vocab_size": 200, "dtype": "float32"}
    return Case(**{**defaults, **settings})


def implementation(name: str) -> Implementation:
    return load(REGISTRY[name])


# 16 tokens: two in each of torchtune's eight chunks. 13: the last chunks are short, one of eight is missing.
@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("tokens", [16, 13])
@pytest.mark.filterwarnings("ignore:linear_cross_entropy. ``options`` ignored")  # with smoothing, as documented
def test_agrees_with_the_contract(name: str, tokens: int) -> None:
    adapter = implementation(name)
    loss_function = adapter.build()
    compared = 0
    for smoothing, softcap, bias, ignored, reduction in itertools.product(
        (0.0, 0.1), (None, 3.0), (False, True), (0, 5), ("mean", "sum", "none")
    ):
        settings = {"label_smoothing": smoothing, "softcap": softcap, "reduction": reduction}
        if adapter.supports(
            case(tokens=tokens, ignored_fraction=ignored / tokens, linear_bias=bias, **settings), "cpu"
        ):
            continue
        error = worst_error(loss_function, make_tensors(tokens, ignored=ignored, bias=bias), **settings)
        assert error <= TOLERANCE, (settings, bias, ignored)
        compared += 1
    assert compared >= 8


@pytest.mark.parametrize("name", ON_CPU)
def test_another_ignore_index_than_torchs(name: str) -> None:
    tensors = make_tensors(ignored=5)
    tensors["target"][:5] = 7  # a token of the vocabulary, such as padding: other rows with it are ignored too
    assert worst_error(implementation(name).build(), tensors, ignore_index=7) <= TOLERANCE


@pytest.mark.parametrize("name", ["baseline", "torchtune-chunked", *OURS_EXACT, *OURS_FILTERED])
def test_with_every_row_ignored_the_mean_is_nan_and_the_gradients_are_zero(name: str) -> None:
    tensors = make_tensors(ignored=16)
    loss, *gradients = loss_and_gradients(implementation(name).build(), tensors, torch.float32)
    assert math.isnan(loss.item())
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("wrong", [0.0, 0.999, float("nan")])
def test_the_comparison_notices_a_wrong_gradient(wrong: float) -> None:
    """Of one tensor in three; without this the tests above prove nothing."""

    def spoilt(input: Tensor, linear_weight: Tensor, target: Tensor, **arguments: Any) -> Tensor:
        hooked = linear_weight * 1.0
        hooked.register_hook(lambda gradient: gradient * wrong)
        return eager_loss(input, hooked, target, **arguments)

    assert worst_error(spoilt, make_tensors()) > TOLERANCE


def test_torch_has_nan_gradients_where_it_is_refused() -> None:
    """When this fails torch has changed, and the refusal can go."""
    adapter = implementation("torch-linear-cross-entropy")
    assert "nan gradients" in (adapter.supports(case(ignored_fraction=1.0), "cpu") or "")
    _, grad_input, _ = loss_and_gradients(adapter.build(), make_tensors(ignored=16), torch.float32)
    assert grad_input.isnan().all()
    assert adapter.supports(case(ignored_fraction=1.0, reduction="sum"), "cpu") is None
    assert worst_error(adapter.build(), make_tensors(ignored=16), reduction="sum") == 0


def test_torch_warns_that_smoothing_is_not_chunked() -> None:
    with pytest.warns(UserWarning, match="``options`` ignored"):
        loss_and_gradients(
            implementation("torch-linear-cross-entropy").build(), make_tensors(), torch.float32, label_smoothing=0.1
        )


def test_low_precision_losses_keep_the_dtype_that_the_documentation_says() -> None:
    for name, expected in [("baseline", torch.float32), ("torchtune-chunked", torch.float32)]:
        assert loss_and_gradients(implementation(name).build(), make_tensors(), torch.bfloat16)[0].dtype == expected
    torch_linear = implementation("torch-linear-cross-entropy").build()
    assert loss_and_gradients(torch_linear, make_tensors(), torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the compiler's own imports
def test_torch_compile_agrees_with_the_contract() -> None:
    """One variant with everything in it: compiling takes most of this folder's time."""
    settings = {"label_smoothing": 0.1, "softcap": 3.0, "reduction": "mean"}
    tensors = make_tensors(ignored=5, bias=True)
    assert worst_error(implementation("torch-compile").build(), tensors, **settings) <= TOLERANCE


@pytest.mark.parametrize("chunks", [1, 3, 40])
def test_any_number_of_torchtune_chunks_gives_the_same(chunks: int) -> None:
    assert worst_error(build_torchtune(chunks=chunks), make_tensors(ignored=5)) <= TOLERANCE


REFUSALS = [
    ("torchtune-chunked", "cpu", {"label_smoothing": 0.1}, "no label smoothing"),
    ("torchtune-chunked", "cuda", {"reduction": "sum"}, "no reduction but the mean"),
    ("torchtune-chunked", "cuda", {"reduction": "none"}, "no reduction but the mean"),
    ("torch-linear-cross-entropy", "cuda", {"softcap": 30.0}, "no softcap"),
    ("liger", "cpu", {"softcap": 30.0}, "interpreter"),
    ("liger-fp32-accum", "cpu", {"softcap": 30.0}, "interpreter"),
    ("cce", "cpu", {"dtype": "bfloat16"}, "interpreter"),
    ("cce", "cuda", {"dtype": "bfloat16", "label_smoothing": 0.1}, "no label smoothing"),
    ("cce", "cuda", {"dtype": "bfloat16", "linear_bias": True}, "no bias"),
    ("cce-no-filter", "cuda", {"dtype": "float32"}, "fp32"),
    ("cce-no-filter", "cuda", {"dtype": "float16", "ignored_fraction": 1.0}, "divides by zero"),
    ("cce", "cuda", {"dtype": "bfloat16", "vocab_size": 2**18, "hidden_size": 2**13}, "32-bit offsets"),
    ("cce-no-sort", "cuda", {"dtype": "bfloat16"}, "sorts the vocabulary whenever it filters"),
]


@pytest.mark.parametrize(("name", "device", "settings", "reason"), REFUSALS)
def test_what_a_library_cannot_do_is_refused_with_a_reason(name: str, device: Any, settings: Any, reason: str) -> None:
    given = implementation(name).supports(case(**settings), device)
    assert given is not None
    assert reason in given
    assert "\n" not in given and not given.endswith(".")  # it becomes a footnote


SUPPORTED = [
    ("baseline", "cpu", {"label_smoothing": 0.1, "softcap": 30.0, "linear_bias": True, "reduction": "none"}),
    ("torch-compile", "cuda", {"label_smoothing": 0.1, "softcap": 30.0, "linear_bias": True, "reduction": "none"}),
    ("liger", "cuda", {"label_smoothing": 0.1, "softcap": 30.0, "linear_bias": True, "reduction": "none"}),
    ("liger", "cpu", {"label_smoothing": 1.0, "linear_bias": True, "ignored_fraction": 1.0}),
    ("cce", "cuda", {"dtype": "bfloat16", "softcap": 30.0, "reduction": "none", "ignored_fraction": 0.5}),
    ("cce-no-filter", "cuda", {"dtype": "float16", "reduction": "sum", "ignored_fraction": 1.0}),
    ("cce", "cuda", {"dtype": "bfloat16", "tokens": 8192, "hidden_size": 2304, "vocab_size": 256000}),
    ("torch-linear-cross-entropy", "cuda", {"label_smoothing": 0.1, "linear_bias": True, "reduction": "none"}),
    ("torchtune-chunked", "cuda", {"softcap": 30.0, "linear_bias": True, "ignored_fraction": 1.0}),
]


@pytest.mark.parametrize(("name", "device", "settings"), SUPPORTED)
def test_what_a_library_can_do_is_not_refused(name: str, device: Any, settings: Any) -> None:
    assert implementation(name).supports(case(**settings), device) is None


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("torchtune-chunked", "torchtune"),
        ("liger", "liger_kernel"),
        ("liger-fp32-accum", "liger_kernel"),
        ("cce", "cut_cross_entropy"),
        ("cce-no-filter", "cut_cross_entropy"),
    ],
)
def test_a_missing_library_is_named_when_it_is_built(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m == library or m.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)  # what Python's import takes for "not installed"
    adapter = implementation(name)  # importing the adapter does not need the library
    assert adapter.requires is not None
    with pytest.raises(ModuleNotFoundError, match=library):
        adapter.build()


def test_an_old_torch_is_named_when_its_function_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions")
    adapter = implementation("torch-linear-cross-entropy")
    assert adapter.requires == "torch>=2.13"
    with pytest.raises(ImportError, match=r"needs torch >= 2\.13"):
        adapter.build()


def test_what_no_installation_provides_has_no_pip_line() -> None:
    adapter = implementation("cce-no-sort")
    assert adapter.requires is None
    with pytest.raises(ImportError, match="filter_eps"):
        adapter.build()


@pytest.mark.parametrize("name", PEERS)
def test_an_unknown_option_is_named(name: str) -> None:
    with pytest.raises(TypeError, match="blocks"):
        implementation(name).build(blocks=3)


def test_ours_has_a_knob_where_gradients_are_modelled() -> None:
    built = load(REGISTRY["ours"]).build(gradient_tolerance=0.01)
    assert built._settings == {"gradient": "auto", "gradient_tolerance": 0.01}
    with pytest.raises(TypeError, match="gradient_tolerance"):
        load(REGISTRY["ours-exact"]).build(gradient_tolerance=0.01)


@pytest.mark.parametrize("chunks", [0, -1, True, "8"])
def test_a_wrong_number_of_chunks_is_named(chunks: Any) -> None:
    with pytest.raises(ValueError, match="chunks"):
        build_torchtune(chunks=chunks)


@pytest.mark.parametrize("filter_eps", [0, -1.0, True, "low"])
def test_a_wrong_filter_is_named(filter_eps: Any) -> None:
    with pytest.raises(ValueError, match="filter_eps"):
        build_cce(filter_eps=filter_eps)


def test_a_wrong_option_of_torch_is_named() -> None:
    build = implementation("torch-linear-cross-entropy").build
    with pytest.raises(ValueError, match="acc_policy"):
        build(acc_policy="fast")
    assert worst_error(build(batch_chunk_size=3, acc_policy="accurate"), make_tensors()) <= TOLERANCE


def test_marks_say_what_the_library_does() -> None:
    marked = {
        mark: {name for name in REGISTRY if getattr(implementation(name), mark)}
        for mark in ("uses_triton", "skips_work")
    }
    assert marked["uses_triton"] == {"liger", "liger-fp32-accum", "cce", "cce-no-filter", "cce-no-sort", "cce-exact"}
    assert marked["skips_work"] == {"cce", "cce-no-sort", *OURS_FILTERED, *OURS_CORRECTED}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"liger", "liger-fp32-accum", "liger-cutedsl", "torch-linear-cross-entropy", *FUSED}),
        ({"label_smoothing": 0.1}, {"liger", "liger-fp32-accum", "liger-cutedsl", *FUSED}),
        ({"reduction": "none"}, set()),
    ],
)
def test_where_gradients_are_computed_depends_on_the_case(settings: dict[str, Any], expected: set[str]) -> None:
    case = Case(tokens=8, hidden_size=8, vocab_size=32, **settings)
    marks = {name: implementation(name).grads_in_forward for name in REGISTRY}
    assert {name for name, mark in marks.items() if (mark(case) if callable(mark) else mark)} == expected


@pytest.mark.parametrize("name", OURS_CORRECTED)
def test_ours_is_the_exact_path_on_a_cpu(name: str) -> None:
    tensors = make_tensors(ignored=5, bias=True)
    settings = {"label_smoothing": 0.1, "softcap": 3.0}
    found = loss_and_gradients(implementation(name).build(), tensors, torch.float32, **settings)
    expected = loss_and_gradients(implementation("ours-exact").build(), tensors, torch.float32, **settings)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ours_says_which_path_it_took(reduction: str) -> None:
    tensors = make_tensors(ignored=5, bias=True)
    leaves = [tensors[name].requires_grad_() for name in ("input", "linear_weight", "linear_bias")]
    settings = {"label_smoothing": 0.1, "ignore_index": -100, "softcap": 3.0, "reduction": reduction}
    loss_function = implementation("ours").build()
    loss = loss_function(**tensors, **settings)
    expected = torch.autograd.grad(loss, leaves, upstream(loss))
    assert loss_function.figures(**tensors, upstream=upstream(loss), **settings) == {"dense": 1.0}
    assert all(torch.equal(leaf.grad, gradient) for leaf, gradient in zip(leaves, expected, strict=True))
    assert implementation("ours-exact").build().figures(**tensors, upstream=upstream(loss), **settings) == {}


def test_cce_exact_needs_what_pypi_lacks() -> None:
    with pytest.raises(ImportError, match="cce_exact"):
        implementation("cce-exact").build()
    assert "git+https://github.com/apple/ml-cross-entropy" in (implementation("cce-exact").requires or "")


def test_the_papers_filter_drops_what_the_others_keep() -> None:
    """Flat logits, many classes: every gradient but the targets' is below the threshold, and together they are all."""
    generator = torch.Generator().manual_seed(1)
    tensors = make_tensors(tokens=8, hidden_size=16, vocab_size=8192)
    tensors["linear_weight"] = torch.randn(8192, 16, generator=generator) * 0.01 + 1.0
    errors = {name: worst_error(implementation(name).build(), tensors) for name in [*OURS_EXACT, *OURS_FILTERED]}
    assert all(errors[name] <= 1e-3 for name in OURS_EXACT), errors  # the shared direction cancels, in fp32 as well
    assert all(errors[name] > 0.1 for name in OURS_FILTERED), errors
