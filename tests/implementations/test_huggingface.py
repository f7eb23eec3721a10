"""Patched models against the same models unpatched: losses, the gradient of every parameter, outputs, generation."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from implementations.deferred_logits import DeferredLogits  # noqa: E402
from implementations.huggingface import (  # noqa: E402
    patch_causal_lm,
    unpatch_causal_lm,
)
from kernels.linear_cross_entropy import reference  # noqa: E402
from tests.implementations.reference import relative_error  # noqa: E402
from tests.implementations.tiny_models import (  # noqa: E402
    FOUR,
    MODELS,
    TOLERANCE,
    VOCAB,
    agree,
    batch,
    build,
    from_logits,
    gradients,
)


@pytest.mark.parametrize("settings", [{}, {"fused": True}, {"gradient": "filtered", "filter_eps": None}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_every_gradient_are_the_models_own(name: str, settings: dict[str, Any]) -> None:
    model, inputs = build(name), batch()
    own = model(**inputs)
    expected = gradients(model, own.loss)
    patch_causal_lm(model, **settings)
    output = model(**inputs)
    agree(gradients(model, output.loss), expected)
    assert type(output) is type(own)
    assert output.logits is None and "logits" not in output
    assert set(own) - set(output) == {"logits"}
    if name == "mixtral":
        assert own.aux_loss > 0.1  # it would be seen if it were missing
        agree([output.aux_loss], [own.aux_loss])


@pytest.mark.parametrize("name", FOUR)
def test_label_smoothing_is_torchs(name: str) -> None:
    model, inputs = build(name), batch()
    plain, expected = (gradients(model, from_logits(model, inputs, label_smoothing=beta)) for beta in (0.0, 0.1))
    patch_causal_lm(model, label_smoothing=0.1)
    given = gradients(model, model(**inputs).loss)
    agree(given, expected)
    assert relative_error(given[0], plain[0]) > 50 * TOLERANCE


@pytest.mark.parametrize("items", [7, torch.tensor(7)], ids=["int", "tensor"])
def test_num_items_in_batch_divides_the_sum(items: Any) -> None:
    model, inputs = build("gemma2-tied"), batch()
    expected = gradients(model, model(**inputs, num_items_in_batch=items).loss)
    smooth = gradients(model, from_logits(model, inputs, label_smoothing=0.1, reduction="sum") / 7)
    patch_causal_lm(model)
    agree(gradients(model, model(**inputs, num_items_in_batch=items).loss), expected)
    unpatch_causal_lm(model)
    patch_causal_lm(model, label_smoothing=0.1)
    agree(gradients(model, model(**inputs, num_items_in_batch=items).loss), smooth)


def test_shift_labels_are_taken_as_they_are() -> None:
    model, inputs = build("llama"), batch()
    inputs["shift_labels"] = inputs["labels"].roll(-3, 1)
    expected = gradients(model, model(**inputs).loss)
    patch_causal_lm(model)
    agree(gradients(model, model(**inputs).loss), expected)
    agree(gradients(model, model(**{**inputs, "shift_labels": inputs["shift_labels"].flatten()}).loss), expected)


def test_another_ignore_index() -> None:
    model, inputs = build("llama"), batch(ignored=False)
    inputs["labels"][:, ::3] = 0
    expected = gradients(model, from_logits(model, inputs, ignore_index=0))
    patch_causal_lm(model, ignore_index=0)
    agree(gradients(model, model(**inputs).loss), expected)
    unpatch_causal_lm(model)
    patch_causal_lm(model)
    agree(gradients(model, model(**inputs, ignore_index=0).loss), expected)  # transformers' own way to say it


def test_with_every_label_ignored_the_mean_is_nan_as_without_the_patch() -> None:
    model, inputs = build("llama"), batch()
    inputs["labels"][:] = -100
    assert model(**inputs).loss.isnan()
    patch_causal_lm(model)
    loss, *given = gradients(model, model(**inputs).loss)
    assert loss.isnan() and not any(gradient.any() for gradient in given)


@pytest.mark.parametrize("name", FOUR)
def test_bf16_is_as_near_to_fp32_as_the_models_own_loss(name: str) -> None:
    model, inputs = build(name, torch.bfloat16), batch()
    wide = copy.deepcopy(model).float()
    truth = gradients(wide, wide(**inputs).loss)
    own = [relative_error(*pair) for pair in zip(gradients(model, model(**inputs).loss), truth, strict=True)]
    patch_causal_lm(model)
    given = gradients(model, model(**inputs).loss)
    for error, allowed in zip((relative_error(*pair) for pair in zip(given, truth, strict=True)), own, strict=True):
        assert error <= 1.5 * max(allowed, 2**-8)
    assert given[0].dtype == torch.float32 and given[1].dtype == torch.bfloat16


def test_autocast() -> None:
    model, inputs = build("gemma2"), batch()
    truth = gradients(model, model(**inputs).loss)
    patch_causal_lm(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs).loss
    agree(gradients(model, loss), truth, tolerance=0.1)


def largest_allocation(model: Any, inputs: dict[str, Tensor]) -> int:
    """Bytes that one operator allocates in a forward and a backward; those called by custom operators are counted."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        model(**inputs).loss.backward()
    return max(event.self_cpu_memory_usage for event in profile.events())


@pytest.mark.parametrize("settings", [{}, {"fused": True}, {"label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma2-tied"])
def test_logits_are_never_built(name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, tokens = 2048, 32 * 32
    chunk = 4 * 128 * vocab  # bytes; 128 rows of logits are the least the CPU path takes at a time
    monkeypatch.setattr(reference, "CHUNK_BYTES", chunk)
    model, inputs = build(name, vocab_size=vocab), batch(vocab=vocab, size=32, length=32)
    assert largest_allocation(model, inputs) >= 4 * tokens * vocab  # without the patch they are, and it is seen
    patch_causal_lm(model, **settings)
    assert largest_allocation(model, inputs) <= chunk < tokens * vocab  # not even of one byte each


def test_without_labels_nothing_changes() -> None:
    model, inputs = build("gemma2-tied"), batch()
    del inputs["labels"]
    expected, continued = model(**inputs).logits, model.generate(**inputs, max_new_tokens=5, do_sample=False)
    patch_causal_lm(model, label_smoothing=0.1)
    model(**batch()).loss.backward()
    assert model(**inputs).logits.equal(expected)
    assert model.generate(**inputs, max_new_tokens=5, do_sample=False).equal(continued)


def test_the_other_arguments_reach_the_model() -> None:
    model, inputs = build("llama"), batch()
    own = model(**inputs, output_hidden_states=True, use_cache=True)
    patch_causal_lm(model)
    output = model(**inputs, output_hidden_states=True, use_cache=True)
    assert len(output.hidden_states) == 3 and output.past_key_values is not None
    agree([output.loss.detach()], [own.loss.detach()])
    positional = model(inputs["input_ids"], inputs["attention_mask"], None, None, None, inputs["labels"])
    assert positional.loss.equal(output.loss) and positional.logits is None
    loss, *others = model(**inputs, return_dict=False)
    assert loss.equal(output.loss) and not any(isinstance(other, Tensor | DeferredLogits) for other in others)
    with torch.no_grad():
        assert not model(**inputs).loss.requires_grad
    with pytest.raises(ValueError, match="target: shape"):
        model(**inputs, logits_to_keep=3)  # an error without the patch as well


def test_calls_to_forward_itself_are_patched_too() -> None:
    """PEFT calls the forward of the model inside, past its __call__."""
    model, inputs = build("llama"), batch()
    own = from_logits(model, inputs, label_smoothing=0.1)
    patch_causal_lm(model, label_smoothing=0.1)
    output = model.forward(**inputs)
    assert output.logits is None
    agree([output.loss.detach()], [own.detach()])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the compiler's own imports
def test_a_patched_model_can_be_compiled() -> None:
    model, inputs = build("gemma2-tied"), batch()
    expected = gradients(model, model(**inputs).loss)
    patch_causal_lm(model)
    graphs = 0

    def backend(graph: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    for _ in range(3):
        output = compiled(**inputs)
        assert output.logits is None
        agree(gradients(model, output.loss), expected)
    assert graphs == 1  # neither breaks nor recompilations


def test_unpatching_restores_the_model_and_its_class() -> None:
    model, inputs = build("llama"), batch()
    before, signature, attributes = type(model), inspect.signature(model.forward), set(vars(model))
    own = model(**inputs)
    patch_causal_lm(model)
    assert inspect.signature(model.forward) == signature  # Trainer reads it to choose columns
    assert isinstance(model, before)
    assert (type(model).__name__, type(model).__module__) == (before.__name__, before.__module__)
    model(**inputs)
    unpatch_causal_lm(model)
    assert type(model) is before and set(vars(model)) == attributes and "forward" not in vars(model.lm_head)
    assert model(**inputs).logits.equal(own.logits)
    with pytest.raises(ValueError, match="not patched"):
        unpatch_causal_lm(model)
    patch_causal_lm(model)  # and again


def test_an_error_in_a_forward_leaves_nothing_behind() -> None:
    model, inputs = build("llama"), batch()
    patch_causal_lm(model)
    with pytest.raises(IndexError):
        model(**{**inputs, "input_ids": inputs["input_ids"] + VOCAB})
    assert "forward" not in vars(model.lm_head) and "_loss_function" not in vars(model)


def test_copies_use_their_own_weights() -> None:
    """What deepcopy and DataParallel make of a patched model must not compute with the first one's head."""
    model, inputs = build("llama"), batch()
    patch_causal_lm(model)
    first = model(**inputs).loss
    for copied in (copy.deepcopy(model), model._replicate_for_data_parallel()):
        copied._modules = copy.deepcopy(model._modules)
        with torch.no_grad():
            copied.lm_head.weight.zero_()
        assert copied(**inputs).loss.item() == pytest.approx(torch.tensor(float(VOCAB)).log().item())
    assert model(**inputs).loss.equal(first)
