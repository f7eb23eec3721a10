"""What the patch and the Trainer mixin refuse, what they follow, and compute_loss against Trainer's own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from implementations.huggingface import (  # noqa: E402
    LinearCrossEntropyTrainerMixin,
    patch_causal_lm,
)
from kernels import LinearCrossEntropyLoss, linear_cross_entropy  # noqa: E402
from tests.implementations.tiny_models import (  # noqa: E402
    BATCH,
    HIDDEN,
    LENGTH,
    MOE,
    SIZES,
    VOCAB,
    agree,
    batch,
    build,
    from_logits,
    gradients,
)


class Shifted(transformers.LlamaForCausalLM):
    """A model that does with its logits what `change` says, and computes its loss from that."""

    change: Any = None

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        logits = self.lm_head(self.model(input_ids).last_hidden_state)
        logits = type(self).change(logits)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda logits: logits * 0.5, r"head, \* 0\.5; linear_cross_entropy knows"),
        (lambda logits: 3 * torch.tanh(logits / 2), r"head, / 2\.0 tanh \* 3\.0;"),
        (lambda logits: logits + 1, r"applies an index, \+, - or @ to its logits"),
        (lambda logits: logits[..., :5], r"applies an index, \+, - or @ to its logits"),
        (lambda logits: logits.view(-1, VOCAB), r"applies \.view to its logits"),
        (torch.exp, r"applies torch\.exp to its logits"),
        (lambda logits: logits * torch.ones(VOCAB), r"applies \* by a Tensor|applies torch\.mul"),
        (lambda logits: torch.zeros(BATCH, LENGTH, VOCAB), r"output embeddings did not produce"),
    ],
)
def test_an_unknown_step_between_head_and_loss_is_refused(change: Any, said: str) -> None:
    model = Shifted(build("llama").config)
    Shifted.change = staticmethod(change)
    patch_causal_lm(model)
    with pytest.raises(NotImplementedError, match=said):
        model(batch()["input_ids"], labels=batch()["labels"])


@pytest.mark.parametrize(
    "change", [lambda logits: logits.float() / 1.0, lambda logits: 2.0 * F.tanh((logits * 1).contiguous() / 2)]
)
def test_steps_that_are_known_are_followed(change: Any) -> None:
    model, inputs = Shifted(build("llama").config), batch()
    Shifted.change = staticmethod(change)
    expected = gradients(model, model(inputs["input_ids"], labels=inputs["labels"]).loss)
    patch_causal_lm(model)
    agree(gradients(model, model(inputs["input_ids"], labels=inputs["labels"]).loss), expected)


class Quantised(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def without_head() -> Any:
    return transformers.LlamaModel(build("llama").config)


def with_other_head() -> Any:
    model = build("llama")
    model.lm_head = Quantised(HIDDEN, VOCAB)
    return model


def with_replaced_forward(part: str) -> Any:
    model = build("llama")
    module = model.get_submodule(part)
    module.forward = module.forward
    return model


def with_own_loss() -> Any:
    model = build("llama")
    model.loss_function = F.cross_entropy
    return model


def patched() -> Any:
    model = build("llama")
    patch_causal_lm(model)
    return model


def masked() -> Any:
    sizes = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    return transformers.BertForMaskedLM(transformers.BertConfig(**sizes))


def scaled(family: str, **scales: float) -> Any:
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **scales})
    return getattr(transformers, f"{family}ForCausalLM")(config)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: nn.Linear(2, 2), TypeError, "Linear is no transformers model"),
        (without_head, ValueError, "LlamaModel has no output embeddings"),
        (with_other_head, TypeError, r"the head is a .*test_huggingface_trainer\.Quantised"),
        (lambda: with_replaced_forward("lm_head"), ValueError, "forward of its head has been replaced"),
        (lambda: with_replaced_forward(""), ValueError, "forward of this LlamaForCausalLM has been replaced"),
        (with_own_loss, ValueError, "loss_function has been set to .*cross_entropy"),
        (masked, ValueError, "the loss of BertForMaskedLM is .*ForMaskedLMLoss"),
        (patched, ValueError, "already patched"),
        (lambda: scaled("Granite", logits_scaling=8.0), ValueError, r"scales by config\.logits_scaling = 8\.0"),
        (lambda: scaled("Cohere", logit_scale=0.25), ValueError, r"scales by config\.logit_scale = 0\.25"),
    ],
)
def test_a_model_that_cannot_be_patched_is_refused(make: Any, error: type[Exception], said: str) -> None:
    model = make()
    before = type(model)
    with pytest.raises(error, match=said):
        patch_causal_lm(model)
    assert type(model) is before


def test_what_is_exchanged_after_the_patch_is_refused_too() -> None:
    for change, said in ((with_other_head, "the head is a"), (with_own_loss, "loss_function has been set")):
        model = patched()
        vars(model).update(vars(change()))
        with pytest.raises((TypeError, ValueError), match=said):
            model(**batch())


def test_a_scale_of_one_is_none() -> None:
    model, inputs = scaled("Granite", logits_scaling=1.0), batch()
    expected = gradients(model, model(**inputs).loss)
    patch_causal_lm(model)
    agree(gradients(model, model(**inputs).loss), expected)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing: 1.5"),
        ({"gradient": "fast"}, ValueError, "gradient: 'fast'"),
        ({"smoothing": 0.1}, TypeError, "smoothing: no such setting"),
        ({"reduction": "sum"}, TypeError, "reduction: not a setting here"),
        ({"softcap": 30.0}, TypeError, "softcap: not a setting here"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        patch_causal_lm(build("llama"), **settings)


def test_the_settings_that_are_listed_are_those_that_are_taken() -> None:
    """All of them, each with the value that it has by itself, and all in the documentation."""
    with pytest.raises(TypeError, match="typo: no such setting; allowed are ") as caught:
        patch_causal_lm(build("llama"), typo=1)
    listed = str(caught.value).partition("allowed are ")[2].split(", ")
    known = {**LinearCrossEntropyLoss.__init__.__kwdefaults__, **linear_cross_entropy.__kwdefaults__}
    taken = []
    for name, value in known.items():
        try:
            patch_causal_lm(build("llama"), **{name: value})
        except TypeError:
            continue
        taken.append(name)
    assert {"label_smoothing", "order", "order_interval", "token_groups"} <= set(taken)
    assert listed == sorted(taken)
    said = re.search(r"Settings are those of .*?\. With", Path("docs/huggingface.md").read_text(), re.DOTALL)
    assert said is not None
    assert sorted(re.findall(r"`([a-z_]+)`", said[0])) == listed
    assert all(re.search(rf"\b{name}\b", patch_causal_lm.__doc__) for name in listed)


class Stub:
    """Trainer's own compute_loss and as much of a Trainer as that reads; a real one needs accelerate."""

    compute_loss_func = None
    compute_loss = transformers.Trainer.compute_loss

    def __init__(self, model: Any, smoothing: float = 0.0, processes: int = 1, **attributes: Any) -> None:
        self.model, self.model_accepts_loss_kwargs = model, True
        self.args = SimpleNamespace(label_smoothing_factor=smoothing, n_gpu=1, average_tokens_across_devices=True)
        self.accelerator = SimpleNamespace(
            unwrap_model=lambda wrapped: getattr(wrapped, "module", wrapped), num_processes=processes
        )
        self.label_smoother = transformers.trainer_pt_utils.LabelSmoother(epsilon=smoothing) if smoothing else None
        vars(self).update(attributes)

    def get_tp_size(self) -> int:
        return 1


class Ours(LinearCrossEntropyTrainerMixin, Stub):
    loss_settings = {"gradient": "filtered", "filter_eps": None}  # noqa: RUF012


class Wrapper(nn.Module):
    """As DistributedDataParallel: the model is its `module`, and calls go through it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, **kwargs: Any) -> Any:
        self.calls += 1
        return self.module(**kwargs)


@pytest.mark.parametrize("items", [None, torch.tensor(7)], ids=["mean", "items"])
@pytest.mark.parametrize(
    ("name", "smoothing"), [("llama", 0.0), ("llama", 0.1), ("gemma2-tied", 0.1), ("mixtral", 0.0)]
)
def test_compute_loss_is_trainers_own(name: str, smoothing: float, items: Tensor | None) -> None:
    model = build(name)
    theirs = Stub(model, smoothing, processes=3).compute_loss(model, batch(), num_items_in_batch=items)
    expected = gradients(model, theirs)
    wrapper, inputs = Wrapper(model), batch()
    ours = Ours(model, smoothing, processes=3)
    loss, outputs = ours.compute_loss(wrapper, inputs, return_outputs=True, num_items_in_batch=items)
    assert outputs.logits is None and wrapper.calls == 1
    agree(gradients(model, loss), expected)
    assert ours.compute_loss(model, batch(), False, items).equal(loss.detach())
    inside = SimpleNamespace(get_base_model=lambda: model)  # PEFT's
    wrapped = Ours(
        inside, smoothing, processes=3, accelerator=SimpleNamespace(unwrap_model=lambda _: inside, num_processes=3)
    )
    assert wrapped.compute_loss(model, batch(), False, items).equal(loss.detach())
    assert model(**inputs).logits is not None  # the model is as it was


def test_compute_loss_smooths_and_keeps_the_auxiliary_loss() -> None:
    """Which Trainer's own smoothing leaves out."""
    model = build("mixtral")
    loss, outputs = Ours(model, 0.1).compute_loss(model, batch(), return_outputs=True)
    smooth = from_logits(model, batch(), label_smoothing=0.1) + MOE["router_aux_loss_coef"] * outputs.aux_loss
    agree([loss.detach()], [smooth.detach()])


def test_what_a_trainer_cannot_do_without_logits_is_refused() -> None:
    model = build("llama")
    for name in ("compute_metrics", "compute_loss_func"):
        with pytest.raises(ValueError, match=f"{name}: it reads logits"):
            Ours(model, **{name: print})
    with pytest.raises(ValueError, match="n_gpu: 2"):
        Ours(model, args=SimpleNamespace(n_gpu=2))
    with pytest.raises(ValueError, match=r"config\.logits_scaling"):
        Ours(scaled("Granite", logits_scaling=8.0))
    smooth = type("Smooth", (Ours,), {"loss_settings": {"label_smoothing": 0.1}})
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        smooth(model)
    with pytest.raises(ValueError, match="already patched"):
        Ours(patched())


@pytest.mark.parametrize("way", ["patch", "mixin"])
def test_a_real_trainer_learns_the_same(way: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    rows = [{key: value[row] for key, value in batch(size=8).items()} for row in range(8)]
    losses = []
    for ours in (False, True):
        model = build("gemma2-tied")
        if ours and way == "patch":
            patch_causal_lm(model)
        smoothing = 0.1 if way == "mixin" else 0.0
        arguments = transformers.TrainingArguments(
            tmp_path, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=1,
            label_smoothing_factor=smoothing, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        kind = (
            type("T", (LinearCrossEntropyTrainerMixin, transformers.Trainer), {}) if ours and way == "mixin" else None
        )
        trainer = (kind or transformers.Trainer)(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        losses[-1].append(trainer.evaluate()["eval_loss"])
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_nothing_imports_transformers_before_it_is_used() -> None:
    script = "import sys, implementations.huggingface, kernels; print('transformers' in sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert finished.stdout.strip() == "False"
