"""What a gradient filter does to label smoothing: trains one small model three times, in plain fp32 torch on a CPU.

    python examples/filtered_smoothing.py

exact: every logit gradient. whole: blocks in which no |p - q| exceeds 2**-12 are zero, smoothing with the rest, as in
"Calibrated Language Models and How to Find Them with Label Smoothing". kept: the same blocks lose the softmax, and
smoothing, -beta / V for every class, stays. The last one trains away from the others: docs/training.md says why.
A context has eight likely continuations and, at times, any word of a Zipf distribution. Five minutes on two cores.
"""

import torch
import torch.nn.functional as F

V, D, N, STEPS, BETA = 32768, 48, 512, 201, 0.1
BLOCK_N, BLOCK_V, EPS = 128, 256, 2.0**-12
CONTEXTS, LIKELY, SHARE_OF_LIKELY = 512, 8, 0.85


def filtered(dz: torch.Tensor) -> torch.Tensor:  # (N, V)
    """dz, zero in every block of tokens and classes in which nothing is larger than EPS."""
    active = dz.view(N // BLOCK_N, BLOCK_N, V // BLOCK_V, BLOCK_V).abs().amax(dim=(1, 3)) > EPS
    return dz * active.repeat_interleave(BLOCK_N, 0).repeat_interleave(BLOCK_V, 1)


def logit_gradient(kind: str, p: torch.Tensor, onehot: torch.Tensor) -> torch.Tensor:
    rough, smoothing = p - (1 - BETA) * onehot, BETA / V
    if kind == "exact":
        return rough - smoothing
    return filtered(rough - smoothing) if kind == "whole" else filtered(rough) - smoothing


def train(kind: str) -> None:
    draw = torch.Generator().manual_seed(1)
    words = (torch.arange(V) + 2.7) ** -1.4
    likely = torch.multinomial(words, CONTEXTS * LIKELY, replacement=True, generator=draw).view(CONTEXTS, LIKELY)
    weights = torch.rand(CONTEXTS, LIKELY, generator=draw) ** 3
    torch.manual_seed(0)
    context = torch.nn.Parameter(torch.randn(CONTEXTS, D) / 2)
    classifier = torch.nn.Parameter(torch.randn(V, D) / 50)
    optimizer = torch.optim.AdamW([context, classifier], lr=3e-3)
    for step in range(STEPS):
        chosen = torch.randint(CONTEXTS, (N,), generator=draw)
        place = torch.multinomial(weights[chosen], 1, generator=draw)[:, 0]
        rare = torch.multinomial(words, N, replacement=True, generator=draw)
        target = torch.where(torch.rand(N, generator=draw) < SHARE_OF_LIKELY, likely[chosen, place], rare)
        input = F.layer_norm(context[chosen], (D,))
        with torch.no_grad():
            logits = input @ classifier.T
            loss = F.cross_entropy(logits, target, label_smoothing=BETA)
            p, onehot = logits.softmax(dim=1), F.one_hot(target, V).float()
            dz = logit_gradient(kind, p, onehot)
            tail = (p * (p < EPS)).sum(dim=1).mean()
        optimizer.zero_grad()
        input.backward(dz @ classifier / N)
        classifier.grad = dz.T @ input.detach() / N
        optimizer.step()
        if step % 50 == 0:
            print(f"{kind:5}  step {step:3}  loss {loss:6.3f}  mass in classes below 2**-12: {tail:.2f}", flush=True)


if __name__ == "__main__":
    for kind in ("exact", "whole", "kept"):
        train(kind)
