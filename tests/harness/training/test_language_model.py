"""The model: what it may look at, and what gradients reach."""

from __future__ import annotations

import pytest
import torch

from harness.training.config import ModelSettings
from harness.training.model import LanguageModel


def model_of(**changes: object) -> LanguageModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "hidden_size": 32, "layers": 2, "heads": 4, "context": 12}
    return LanguageModel(ModelSettings.model_validate(shape | changes))


def tokens_of(length: int = 12) -> torch.Tensor:
    return torch.randint(300, (3, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
def test_no_token_sees_a_later_one(mlp: str) -> None:
    model, tokens = model_of(mlp=mlp), tokens_of()
    before = model.hidden_states(tokens)
    tokens[:, 7] = (tokens[:, 7] + 1) % 300
    after = model.hidden_states(tokens)
    assert before.shape == (3, 12, 32)
    assert torch.equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(dim=-1).all()  # and every later one sees it


def test_order_matters() -> None:
    model, tokens = model_of(), tokens_of()
    swapped = tokens.clone()
    swapped[:, [2, 5]] = tokens[:, [5, 2]]
    assert not torch.allclose(model.hidden_states(tokens)[:, -1], model.hidden_states(swapped)[:, -1], atol=1e-6)


def test_positions_are_relative() -> None:
    """Rotary attention depends on distances: the same tokens one place later have the same scores."""
    from harness.training.model import rotate, rotation

    cosine, sine = rotation(12, 8)
    query, key = torch.randn(2, 8).unbind()
    scores = [
        (rotate(query, cosine[k + 3], sine[k + 3]) * rotate(key, cosine[k], sine[k])).sum().item() for k in range(9)
    ]
    assert scores == pytest.approx([scores[0]] * 9, abs=1e-5)
    assert scores[0] != pytest.approx((query * key).sum().item(), abs=1e-3)


def test_hidden_states_end_in_a_norm() -> None:
    hidden = model_of().hidden_states(tokens_of())
    assert hidden.square().mean(dim=-1).detach().numpy() == pytest.approx(1.0, abs=1e-3)


def test_a_tied_heads_gradient_has_both_parts() -> None:
    tied = model_of()
    assert tied.head_weight is tied.embedding.weight
    untied = model_of(tied=False)
    with torch.no_grad():
        for name, parameter in tied.named_parameters():
            untied.get_parameter(name).copy_(parameter)
        untied.head_weight.copy_(untied.embedding.weight)
    assert untied.head_weight.shape == (300, 32)
    for model in (tied, untied):
        (model.hidden_states(tokens_of()) @ model.head_weight.T).logsumexp(-1).sum().backward()
    parts = untied.embedding.weight.grad + untied.head_weight.grad
    assert untied.embedding.weight.grad.abs().sum() > 0
    assert untied.head_weight.grad.abs().sum() > 0
    torch.testing.assert_close(tied.embedding.weight.grad, parts)


def test_every_parameter_gets_a_gradient() -> None:
    model = model_of(tied=False)
    (model.hidden_states(tokens_of()) @ model.head_weight.T).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_weights_are_the_seeds() -> None:
    for first, second in zip(model_of().parameters(), model_of().parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_window_beyond_the_context() -> None:
    with pytest.raises(ValueError, match="13 tokens are more than the model's context of 12"):
        model_of().hidden_states(tokens_of(13))
    assert model_of().hidden_states(tokens_of(5)).shape == (3, 5, 32)
