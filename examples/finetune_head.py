"""Swaps the loss of a small causal language model for ours, with label smoothing, and sees the same curve as torch.

    python examples/finetune_head.py          # a GPU where there is one, else the CPU

Two models start from the same seed and see the same batches of a toy language (a random bigram chain). One computes
its loss from logits, the other from hidden states and the head's weight, whose (tokens, vocabulary) logits never exist.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import linear_cross_entropy

VOCAB, HIDDEN, LENGTH, BATCH, STEPS, BETA = 512, 64, 32, 16, 60, 0.1


class CausalLM(nn.Module):
    """A one-layer decoder; returns the final hidden states (B, T, D), not logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.block = nn.TransformerEncoderLayer(HIDDEN, 4, 4 * HIDDEN, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(HIDDEN)
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        return self.norm(self.block(self.embed(tokens), mask, is_causal=True))


def torch_loss(hidden: Tensor, head: nn.Linear, target: Tensor) -> Tensor:
    """The usual way: logits (B, T, V), then cross-entropy."""
    return F.cross_entropy(head(hidden).flatten(0, 1).float(), target.flatten(), label_smoothing=BETA)


def our_loss(hidden: Tensor, head: nn.Linear, target: Tensor) -> Tensor:
    """The swap."""
    return linear_cross_entropy(hidden, head.weight, target, label_smoothing=BETA)


def train(loss_function, device: torch.device) -> list[float]:
    """The loss of every step."""
    torch.manual_seed(0)
    model = CausalLM().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    likely = torch.randint(VOCAB, (VOCAB, 4))  # four likely successors of every token
    losses = []
    for _ in range(STEPS):
        text = torch.randint(VOCAB, (BATCH, 1))
        while text.shape[1] <= LENGTH:
            choice = likely[text[:, -1]].gather(1, torch.randint(4, (BATCH, 1)))
            text = torch.cat([text, choice], dim=1)
        text = text.to(device)
        loss = loss_function(model(text[:, :-1]), model.lm_head, text[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> float:
    """Prints both curves; returns the largest gap between them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    theirs, ours = train(torch_loss, device), train(our_loss, device)
    for step in range(0, STEPS, 10):
        print(f"step {step:3d}   torch {theirs[step]:.5f}   ours {ours[step]:.5f}")
    gap = max(abs(a - b) for a, b in zip(theirs, ours, strict=True))
    print(f"largest gap over {STEPS} steps: {gap:.2e}")
    return gap


if __name__ == "__main__":
    main()
