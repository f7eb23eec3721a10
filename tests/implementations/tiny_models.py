"""Tiny causal language models of transformers, their batches, losses and gradients, for the tests of the patch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.implementations.reference import relative_error  # and it settles torch.tanh, see there

transformers = pytest.importorskip("transformers")

VOCAB, HIDDEN, BATCH, LENGTH = 97, 16, 2, 12
TOLERANCE = 1e-5  # fp32 against fp32, relative; fp32's own rounding is 6e-8
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "attn_implementation": "eager",
    "initializer_range": 0.3,  # logits whose softmax is not flat
}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.5}
NO_HEAD_DIM = {key: value for key, value in SIZES.items() if key not in ("head_dim", "num_key_value_heads")}
GPT2 = {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_layer": 1, "n_head": 2, "n_positions": 32, "initializer_range": 0.3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**SIZES, "tie_word_embeddings": False}),
    "llama-tied": ("Llama", {**SIZES, "tie_word_embeddings": True}),
    # The cap is low enough that it bends logits of this size.
    "gemma2": ("Gemma2", {**SIZES, "tie_word_embeddings": False, "final_logit_softcapping": 2.0}),
    "gemma2-tied": ("Gemma2", {**SIZES, "tie_word_embeddings": True, "final_logit_softcapping": 2.0}),
    "phi": ("Phi", NO_HEAD_DIM),  # its head has a bias
    "mixtral": ("Mixtral", {**SIZES, **MOE}),  # an auxiliary loss, and an output class of its own
    "gpt2": ("GPT2", GPT2),  # tied; hands its arguments on in another way
}
FOUR = ["llama", "llama-tied", "gemma2", "gemma2-tied"]


def build(name: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    family, sizes = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**sizes, **overrides})
    model = getattr(transformers, "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms of ones and biases of zeros would hide mistakes
            nn.init.normal_(parameter, 0.5, 0.2)
    return model.eval().to(dtype)


def batch(ignored: bool = True, vocab: int = VOCAB, size: int = BATCH, length: int = LENGTH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, vocab, (size, length), generator=generator)
    labels = tokens.clone()
    if ignored:
        labels[0, :5] = labels[1, 8:] = -100  # a prompt, and padding
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    """[loss, the gradient of every parameter]; a tied weight is one parameter."""
    model.zero_grad()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def agree(given: list[Tensor], expected: list[Tensor], tolerance: float = TOLERANCE) -> None:
    for one, other in zip(given, expected, strict=True):
        assert relative_error(one, other) <= tolerance


def from_logits(model: Any, inputs: dict[str, Tensor], **arguments: Any) -> Tensor:
    """The loss by F.cross_entropy, from the logits of the model."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    target = inputs["labels"][:, 1:].flatten()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), target, **arguments)
