"""What was drawn, in a few numbers: they say which regime a case is in, and go into its records."""

from __future__ import annotations

import math

import torch
from pydantic import JsonValue

from harness.case import Case
from harness.worker.inputs import IGNORE_INDEX, Tensors
from harness.worker.products import logits, slices, softcap_, without_tf32

_CHUNK_BYTES = 1 << 29  # of fp32 logits; four tensors of this size are alive at once
_FILTER_THRESHOLD = 2.0**-12  # where published kernels stop computing gradients


@torch.no_grad()
def input_statistics(case: Case, tensors: Tensors) -> dict[str, JsonValue]:
    """Statistics of the case's softmax, softcap and bias included, in fp32 on the rounded inputs, over all N rows.

    entropy_nats: mean entropy. probability_above_2**-12_share: share of all N * V probabilities. tail_mass_mean: mass
    of a row in probabilities of at most 2**-12. lse_mean_nats: mean log-sum-exp. logit_std: over all logits.
    shared_direction_ratio: norm(mean_v C_v) / mean_v norm(C_v).
    top_probability_mean: of each row's largest. target_probability_mean: over the rows that count, None if there are
    none. Then counts: counted_rows, distinct_targets.
    """
    tokens, vocab_size = case.tokens, case.vocab_size
    totals = torch.zeros(8, dtype=torch.float64, device=tensors.input.device)
    with without_tf32():
        for part in slices(tokens, 4 * vocab_size, _CHUNK_BYTES):
            z = logits(tensors.input[part], tensors.linear_weight, tensors.linear_bias, torch.float32)
            softcap_(z, case.softcap)
            lse = z.logsumexp(1)
            p = (z - lse[:, None]).exp_()
            target = tensors.target[part]
            p_target = p.gather(1, target.clamp(min=0)[:, None])[:, 0] * (target != IGNORE_INDEX)
            totals += torch.stack(
                [
                    lse.sum(dtype=torch.float64),
                    (p > _FILTER_THRESHOLD).sum(dtype=torch.float64),
                    p.masked_fill(p > _FILTER_THRESHOLD, 0.0).sum(dtype=torch.float64),
                    p.amax(1).sum(dtype=torch.float64),
                    p_target.sum(dtype=torch.float64),
                    z.sum(dtype=torch.float64),
                    torch.linalg.vector_norm(z, dim=1).double().square().sum(),
                    p.mul_(z).sum(dtype=torch.float64),
                ]
            )
    lse_sum, above, tail, top, p_target_sum, z_sum, z_square_sum, expected_z = totals.tolist()

    direction = torch.zeros(case.hidden_size, dtype=torch.float64, device=tensors.input.device)
    norms = 0.0
    for part in slices(vocab_size, 4 * case.hidden_size):
        rows = tensors.linear_weight[part].float()
        direction += rows.sum(0, dtype=torch.float64)
        norms += float(torch.linalg.vector_norm(rows, dim=1).sum(dtype=torch.float64))
    counted = tensors.target[tensors.target != IGNORE_INDEX]
    logit_count = tokens * vocab_size
    return {
        "entropy_nats": (lse_sum - expected_z) / tokens,
        "probability_above_2**-12_share": above / logit_count,
        "tail_mass_mean": tail / tokens,
        "lse_mean_nats": lse_sum / tokens,
        "logit_std": math.sqrt(max(0.0, z_square_sum / logit_count - (z_sum / logit_count) ** 2)),
        "shared_direction_ratio": float(torch.linalg.vector_norm(direction)) / norms if norms else None,
        "top_probability_mean": top / tokens,
        "target_probability_mean": p_target_sum / counted.numel() if counted.numel() else None,
        "counted_rows": counted.numel(),
        "distinct_targets": int(counted.bincount().count_nonzero()),
    }
