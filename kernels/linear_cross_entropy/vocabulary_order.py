"""Orders of the vocabulary in which classes that behave alike share a tile.

Whatever skips or models tiles gains by it: few tiles then matter to a token, and inside a tile the probabilities of
every token have nearly the same shape. An order depends on linear_weight, and a little on input, which both change
slowly: compute it once, use it for hundreds of steps. A stale order costs speed, never correctness.

Two classes behave alike when their logits move together from token to token. With input ~ (mean, covariance U S^2 U^T),
    E[ ((z_v - z_w) - mean)^2 ] = || (C_v - C_w) U S ||^2,
so the rows of C U S (V, directions), beside the average logit, are features in which distance is what matters
(`logit_features`), and D shrinks to about 128. `balanced_tree` then halves the classes along the top principal
direction of their features, again and again, down to a tile.
"""

import torch
from torch import Tensor

POWER_ITERATIONS = 8  # a split needs no more of the top direction than which side of the median a class is on
SAMPLED_TOKENS = 8192  # for the covariance: 64 samples for each of 128 directions


def average_logits(linear_weight: Tensor, input: Tensor, linear_bias: Tensor | None = None) -> Tensor:  # (V,)
    """The logit of every class averaged over the tokens: one product, since logits are linear in input (N, D)."""
    mean = input.mean(dim=0, dtype=torch.float32).to(linear_weight.dtype)
    average = torch.mv(linear_weight, mean)
    return average if linear_bias is None else average + linear_bias


def average_logit_order(linear_weight: Tensor, input: Tensor) -> Tensor:
    """(V,) int64: classes by their logit averaged over the tokens, descending, as the paper sorts them.

    linear_weight (V, D), input (N, D). A softcap is monotone and does not matter.
    """
    return torch.argsort(average_logits(linear_weight, input), descending=True, stable=True)


def logit_features(linear_weight: Tensor, input: Tensor, directions: int = 128) -> Tensor:
    """(V, directions + 1) fp32: how a class's logit depends on the token, and its average.

    linear_weight (V, D), input (N, D). The covariance of input is taken from at most SAMPLED_TOKENS evenly spaced
    tokens. Directions are fewer where D or the sample is smaller.
    """
    step = max(1, input.shape[0] // SAMPLED_TOKENS)
    sample = input[::step].float()
    mean = sample.mean(dim=0)
    centred = (sample - mean) / len(sample) ** 0.5
    count = min(directions, *centred.shape)
    generator_state = torch.random.get_rng_state()  # svd_lowrank draws from the global generator; leave it as it was
    device_state = torch.cuda.get_rng_state(input.device) if input.is_cuda else None
    torch.manual_seed(0)  # the same inputs give the same order
    _, scale, basis = torch.svd_lowrank(centred, q=count, niter=2)  # (count,), (D, count)
    torch.random.set_rng_state(generator_state)
    if device_state is not None:
        torch.cuda.set_rng_state(device_state, input.device)
    projection = torch.cat([basis * scale, mean[:, None]], dim=1).to(linear_weight.dtype)  # (D, count + 1)
    return (linear_weight @ projection).float()


def balanced_tree(features: Tensor, tile: int) -> Tensor:
    """(V,) int64 order: tile after tile, and pair after pair of tiles, of classes whose features are near each other.

    features (V, F) fp32. Every split is at a multiple of `tile`, so that a ragged last tile stays the last one. Nodes
    of one level have at most three sizes (k tiles, k + 1, and the one with the ragged tile); each size is one batch.
    Raises ValueError if tile < 1.
    """
    if tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    V = features.shape[0]
    order = torch.arange(V, device=features.device)
    nodes = [(0, V)]
    while nodes := [(start, stop) for start, stop in nodes if stop - start > tile]:
        sizes = {stop - start for start, stop in nodes}
        for size in sizes:
            starts = torch.tensor([start for start, stop in nodes if stop - start == size], device=features.device)
            places = starts[:, None] + torch.arange(size, device=features.device)  # (nodes, size)
            classes = order[places]
            coordinate = principal_coordinate(features[classes.flatten()].view(*classes.shape, -1))
            order[places] = classes.gather(1, torch.argsort(coordinate, dim=1, stable=True))
        nodes = [half for node in nodes for half in _halves(*node, tile)]
    return order


def _halves(start: int, stop: int, tile: int) -> list[tuple[int, int]]:
    tiles = -(-(stop - start) // tile)
    middle = start + (tiles + 1) // 2 * tile
    return [(start, middle), (middle, stop)]


def principal_coordinate(points: Tensor) -> Tensor:
    """(B, n): coordinate of every point along the top principal direction of its set; points (B, n, F) fp32."""
    centred = points - points.mean(dim=1, keepdim=True)
    covariance = centred.transpose(1, 2) @ centred  # (B, F, F): the iterations then cost nothing
    # start from the row of the most varied feature: never orthogonal to the top direction but by accident
    most = covariance.diagonal(dim1=1, dim2=2).argmax(dim=1)
    direction = covariance[torch.arange(len(points), device=points.device), most][:, :, None]  # (B, F, 1)
    for _ in range(POWER_ITERATIONS):
        direction = torch.nn.functional.normalize(covariance @ direction, dim=1)
    return (centred @ direction)[:, :, 0]


def token_centres(input: Tensor, count: int, directions: int = 64) -> Tensor:
    """(count, D) fp32: means of `count` equal groups of tokens that lie near each other; input (N, D).

    The leaves of a balanced tree over the tokens along their principal directions. Raises ValueError for more groups
    than tokens.
    """
    if not 1 <= count <= input.shape[0]:
        raise ValueError(f"count must lie in [1, {input.shape[0]}], the number of tokens; got {count}")
    wide = input.float()
    centred = wide - wide.mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.t() @ centred)  # ascending
    order = balanced_tree(centred @ vectors[:, -min(directions, len(vectors)) :], -(-input.shape[0] // count))
    return torch.stack([wide[places].mean(dim=0) for places in order.tensor_split(count)])
