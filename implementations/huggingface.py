"""The loss in Hugging Face training: causal language models whose labelled forward never builds logits.

Library: transformers >= 5.17, imported where it is used. Two ways in, shown in docs/huggingface.md:

    patch_causal_lm(model, label_smoothing=0.1)  # then any loop, Trainer included; unpatch_causal_lm(model) undoes it
    class OurTrainer(LinearCrossEntropyTrainerMixin, Trainer): ...  # the model is left as it is

Neither repeats a model's forward. The model's own runs; while it does, with labels, its head returns `DeferredLogits`
instead of the (B, T, V) logits, and its loss function computes from those

    loss = linear_cross_entropy(hidden, head.weight, labels shifted by one, linear_bias=head.bias, softcap=softcap)

Output class, auxiliary losses of a mixture of experts, tied weights and every argument stay the model's own business.
What a model does to its logits is recorded: softcap * tanh(logits / softcap) is passed on, anything else is refused,
so that no model trains on a loss other than its own by oversight.

Differs from the model's own loss: logits are not rounded to the model's dtype on the way. The output has no logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, cast

import torch
from torch import Tensor, nn

from implementations.deferred_logits import DeferredLogits
from kernels import LinearCrossEntropyLoss, linear_cross_entropy

# Factors that linear_cross_entropy has no argument for. Refusing them by name when a model is patched is a courtesy:
# what is missing here DeferredLogits refuses in the first forward.
SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier")
# By the model and the call
DECIDED_HERE = {"reduction", "softcap", "weight", "return_lse", "return_nll", "return_stats"}
MARK = "_linear_cross_entropy"  # class attribute of a patched model: its settings


def patch_causal_lm(model: Any, **settings: Any) -> None:
    """Makes every forward of `model` with labels compute its loss without logits; other forwards stay as they are.

    model: a transformers model with a head for the next token. Patch it before it is wrapped or compiled; of a PEFT
        model, patch the model inside, `model.get_base_model()`.
    settings: keywords of `kernels.LinearCrossEntropyLoss`: label_smoothing (0), ignore_index (-100), gradient
        ("exact"), gradient_tolerance, order, order_interval, token_groups, model_tail, first_order, fused (False),
        filter_eps, sort_vocabulary, pack_tokens and check_targets. The vocabulary order is kept from forward to
        forward, one for all models patched by this call and their copies.

    As in transformers tokens < n predict n, `shift_labels` given to the forward are taken as they are, and with
    `num_items_in_batch` the loss is the sum over tokens divided by it instead of the mean. The loss is fp32, a scalar.

    Only the class of `model` changes, for a subclass of the same name: copies of the model are patched as well.
    Raises TypeError or ValueError for a model whose loss this cannot be, and for unknown or wrong settings.
    """
    module = _loss_module(settings)
    _check_model(model)
    original = type(model)
    names = list(inspect.signature(original.forward).parameters)[1:]

    # What it calls is compiled, the exchange of head and loss is not.
    @torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call, untyped-decorator]
    @wraps(original.forward)  # Trainer and generate read the signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if {**dict(zip(names, args, strict=False)), **kwargs}.get("labels") is None:
            return original.forward(self, *args, **kwargs)
        with _without_logits(self, module):
            return _strip(original.forward(self, *args, **kwargs))

    # A class and not an attribute of the model: deepcopy and DataParallel would leave that bound to the first model.
    namespace = {"forward": forward, MARK: settings, "__module__": original.__module__, "__doc__": original.__doc__}
    model.__class__ = type(original.__name__, (original,), namespace)


def unpatch_causal_lm(model: Any) -> None:
    """Undoes `patch_causal_lm`. Raises ValueError for a model that is not patched, or that has been wrapped since."""
    if MARK not in vars(type(model)):
        raise ValueError(f"model: this {type(model).__name__} is not patched; unpatch what patch_causal_lm was given")
    model.__class__ = type(model).__bases__[0]


class LinearCrossEntropyTrainerMixin:
    """To be put before Trainer: `compute_loss` as Trainer's own, but without logits.

        class OurTrainer(LinearCrossEntropyTrainerMixin, Trainer):
            loss_settings = {"gradient": "filtered"}  # keywords of LinearCrossEntropyLoss; may be left out

    Label smoothing is TrainingArguments' label_smoothing_factor. Evaluation gives losses only, for there are no logits.
    Raises ValueError when built: for a model that `patch_causal_lm` would refuse, for compute_metrics and
    compute_loss_func, which read logits, for DataParallel (start one process per GPU, or patch the model).
    """

    loss_settings: dict[str, Any] = {}  # noqa: RUF012 - a subclass replaces it, nobody writes to it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trainer: Any = self
        if "label_smoothing" in self.loss_settings:
            raise ValueError("loss_settings: label_smoothing; it is TrainingArguments(label_smoothing_factor=...)")
        for name in ("compute_metrics", "compute_loss_func"):
            if getattr(trainer, name, None) is not None:
                raise ValueError(f"{name}: it reads logits, and there are none")
        if trainer.args.n_gpu > 1:
            raise ValueError(f"n_gpu: {trainer.args.n_gpu}; with DataParallel use patch_causal_lm, or torchrun")
        self._loss_module = _loss_module(self.loss_settings)
        _check_model(_inner(trainer.model))
        trainer.label_smoother = None  # it would compute from logits what the loss now computes without

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Trainer.compute_loss(model, inputs, return_outputs, num_items_in_batch); outputs have no logits."""
        trainer: Any = self
        smoothing = trainer.args.label_smoothing_factor
        with _without_logits(_inner(trainer.accelerator.unwrap_model(model)), self._loss_module, smoothing):
            result = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        return (result[0], _strip(result[1])) if isinstance(result, tuple) else result


@contextmanager
def _without_logits(model: Any, module: LinearCrossEntropyLoss, label_smoothing: float | None = None) -> Iterator[None]:
    """While it lasts `model`'s head defers, and its loss function computes the loss from what was deferred."""
    head: Any = _plain_head(model)
    head.forward = lambda hidden: DeferredLogits(hidden, head.weight, head.bias)
    model.loss_function = partial(_loss, module, label_smoothing)
    try:
        yield
    finally:
        del head.forward, model._loss_function  # the latter is where transformers keeps a loss that was set


def _loss(
    module: LinearCrossEntropyLoss,
    label_smoothing: float | None,  # None: the module's
    logits: DeferredLogits,
    labels: Tensor | None,  # (B, T)
    vocab_size: int | None = None,  # noqa: ARG001 - the head's weight says it
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int | None = None,
    shift_labels: Tensor | None = None,  # (B, T)
    **_: Any,  # a forward hands on whatever it was given
) -> Tensor:
    """What transformers calls ForCausalLMLoss; an fp32 scalar."""
    if not isinstance(logits, DeferredLogits):
        raise NotImplementedError("the model computes its loss from logits that its output embeddings did not produce")
    settings = module.settings if label_smoothing is None else module.settings | {"label_smoothing": label_smoothing}
    ignored = settings.get("ignore_index", -100) if ignore_index is None else ignore_index
    if shift_labels is None:
        shift_labels = nn.functional.pad(cast("Tensor", labels)[..., 1:], (0, 1), value=ignored)
    hidden = logits.hidden.flatten(0, -2)
    target = shift_labels.flatten().to(logits.device)
    order, centres = module.layout(hidden, logits.weight, target, softcap=logits.softcap)
    loss: Any = linear_cross_entropy(
        hidden,
        logits.weight,
        target,
        linear_bias=logits.bias,
        softcap=logits.softcap,
        reduction="mean" if num_items_in_batch is None else "sum",
        vocabulary_order=order,
        token_centres=centres,
        **{**settings, "ignore_index": ignored},
    )
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    result: Tensor = loss if num_items_in_batch is None else loss / num_items_in_batch
    return result


def _strip(output: Any) -> Any:
    """`output` of a model without the deferred logits; an attribute that a class has a default for is None then."""
    if isinstance(output, tuple):
        return tuple(value for value in output if not isinstance(value, DeferredLogits))
    return type(output)(**{name: value for name, value in output.items() if not isinstance(value, DeferredLogits)})


def _loss_module(settings: dict[str, Any]) -> LinearCrossEntropyLoss:
    """The settings, checked, and the vocabulary order that is kept with them. Raises for what is no setting here."""
    for name in settings.keys() & DECIDED_HERE:
        raise TypeError(f"{name}: not a setting here; the model and the call decide it")
    allowed = sorted(LinearCrossEntropyLoss.setting_names() - DECIDED_HERE)
    for name in settings.keys() - set(allowed):
        raise TypeError(f"{name}: no such setting; allowed are {', '.join(allowed)}")
    return LinearCrossEntropyLoss(**settings)


def _check_model(model: Any) -> None:
    from transformers import PreTrainedModel
    from transformers.loss.loss_utils import ForCausalLMLoss

    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model: {name} is no transformers model; of a wrapped one patch the model inside")
    if hasattr(type(model), MARK):
        raise ValueError(f"model: this {name} is already patched; unpatch_causal_lm first")
    if "forward" in vars(model):
        raise ValueError(f"model: the forward of this {name} has been replaced; patch before accelerate or others wrap")
    _plain_head(model)
    if model.loss_function is not ForCausalLMLoss:
        raise ValueError(f"model: the loss of {name} is {model.loss_function!r}, not transformers' ForCausalLMLoss")
    for key in SCALES:
        value = getattr(model.config.get_text_config(), key, None)
        if value not in (None, 1):
            raise ValueError(f"model: {name} scales by config.{key} = {value}, which linear_cross_entropy cannot")


def _plain_head(model: Any) -> nn.Linear:
    """The head of `model`. Raises unless head and loss are as they seem; an adapter may come after a patch."""
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"model: {type(model).__name__} has no output embeddings (lm_head)")
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        kind = f"{type(head).__module__}.{type(head).__qualname__}"
        raise TypeError(f"model: the head is a {kind} (an adapter, or quantised?); allowed is torch.nn.Linear")
    if "forward" in vars(head):
        raise ValueError("model: the forward of its head has been replaced, by a device map or another patch")
    if "_loss_function" in vars(model):
        raise ValueError(f"model: its loss_function has been set to {model.loss_function!r}; only its own is known")
    return head


def _inner(model: Any) -> Any:
    """The transformers model inside of a PEFT model; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
