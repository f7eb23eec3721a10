"""A small decoder-only language model that ends in hidden states: its logits are the loss's own business.

Each layer adds attention(norm(x)) and then mlp(norm(x)) to x, with RMSNorm, rotary positions (Su et al., 2021,
arXiv:2104.09864), torch's scaled_dot_product_attention under a causal mask, and a SwiGLU (Shazeer, 2020,
arXiv:2002.05202) or GELU network. No biases, no dropout: nothing is drawn after the initialisation.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.training.config import ModelSettings

_INITIAL_STD = 0.02  # of every matrix; those that add to the residual stream have less, by its number of additions
_ROTARY_BASE = 10_000.0
_ROUND_TO = 64  # widths of the network that tensor cores like


def rotation(context: int, width: int) -> tuple[Tensor, Tensor]:  # (T, width / 2) each
    """Cosines and sines of position * base^(-2k / width): the angle by which pair k of a head turns."""
    frequency = _ROTARY_BASE ** (-torch.arange(0, width, 2) / width)
    angle = torch.outer(torch.arange(context), frequency)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:  # (B, heads, T, width)
    """Turns the pair (x[k], x[k + width / 2]) of every position."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(x.dtype)  # the angles are fp32, and attention wants its operands alike


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.Linear(hidden_size, 3 * hidden_size, bias=False)  # queries, keys, values
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:  # (B, T, D)
        batch, length, hidden_size = x.shape
        split = self.projections(x).view(batch, length, 3, self.heads, hidden_size // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (B, heads, T, D / heads) each
        query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Network(nn.Module):
    """The MLP of a layer; both kinds have about 8 D^2 parameters."""

    def __init__(self, hidden_size: int, kind: str) -> None:
        super().__init__()
        self.gated = kind == "swiglu"
        width = 4 * hidden_size
        if self.gated:  # three matrices instead of two
            width = _ROUND_TO * math.ceil(8 * hidden_size / 3 / _ROUND_TO)
        self.into = nn.Linear(hidden_size, 2 * width if self.gated else width, bias=False)
        self.out = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (..., D)
        inner = self.into(x)
        if self.gated:
            gate, value = inner.chunk(2, dim=-1)
            inner = F.silu(gate) * value
        else:
            inner = F.gelu(inner)
        out: Tensor = self.out(inner)
        return out


class Layer(nn.Module):
    """Attention and network, each after a norm and added to the stream."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(settings.hidden_size)
        self.attention = Attention(settings.hidden_size, settings.heads)
        self.network_norm = nn.RMSNorm(settings.hidden_size)
        self.network = Network(settings.hidden_size, settings.mlp)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:  # (B, T, D)
        x = x + self.attention(self.attention_norm(x), cosine, sine)
        out: Tensor = x + self.network(self.network_norm(x))
        return out


class LanguageModel(nn.Module):
    """The decoder. `hidden_states`, `head_weight` and `softcap` are what a loss needs; V, D, T as in the settings."""

    def __init__(self, settings: ModelSettings) -> None:
        """Draws the weights from torch's global generator: seed it first."""
        super().__init__()
        self.settings = settings
        self.softcap = settings.softcap
        self.embedding = nn.Embedding(settings.vocab_size, settings.hidden_size)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.layers))
        self.norm = nn.RMSNorm(settings.hidden_size)
        self.head = None if settings.tied else nn.Linear(settings.hidden_size, settings.vocab_size, bias=False)
        cosine, sine = rotation(settings.context, settings.hidden_size // settings.heads)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                additions = 2 * settings.layers if name.endswith("out.weight") else 1
                nn.init.normal_(parameter, std=_INITIAL_STD / math.sqrt(additions))

    @property
    def head_weight(self) -> Tensor:  # (V, D)
        """The classifier; with `tied` the embedding itself, whose gradient then has both parts."""
        return self.embedding.weight if self.head is None else self.head.weight

    def hidden_states(self, tokens: Tensor) -> Tensor:  # (B, T) -> (B, T, D)
        """What the head is applied to, after the last norm. Raises ValueError beyond the context."""
        length = tokens.shape[1]
        if length > self.settings.context:
            raise ValueError(f"{length} tokens are more than the model's context of {self.settings.context}")
        cosine, sine = self.get_buffer("cosine")[:length], self.get_buffer("sine")[:length]
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, cosine, sine)
        normed: Tensor = self.norm(x)
        return normed
