r"""Weighted k-means of the entries of each row, all rows at once.

For a row x with weights omega: centroids `c_1 <= .. <= c_k` with a small
`sum_j omega_j min_i (x_j - c_i)^2`. In one dimension a cluster is an interval of the sorted row:
its borders lie half-way between neighbouring centroids, and its weight and its mean are differences
of cumulative sums. So a step of Lloyd's algorithm (Lloyd 1982) costs k searches in a sorted row
instead of a pass over it, and needs no loop over rows.

Start: for up to 8 centroids, k equally spaced points from the least to the largest entry; otherwise
k-means++ (Arthur and Vassilvitskii 2007), which draws each next centroid with probability in
proportion to `omega_j d_j^2`, d_j the distance to the nearest one drawn so far. At most 100 steps;
a row is finished once the squares of its centroids' moves add up to at most 1e-6 of its variance.
(The settings of the released LeanQuant, Zhang and Shrivastava 2024.) An empty cluster moves to the
entry that costs most, one per step; where no entry costs anything (fewer distinct values than
centroids) it stays where it is.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

_STEPS, _TOLERANCE = 100, 1e-6
_MOST_EQUALLY_SPACED = 8
_ENTRIES_AT_ONCE = 2**18
"""Rows are done in portions of about so many entries: their float64 sums need the memory."""


def row_kmeans(
    values: Float[Tensor, "rows in"], weight: Float[Tensor, " in"], count: int, seed: int
) -> Float[Tensor, "rows count"]:
    """Ascending centroids of each row. `weight`, omega, is at least 0; its unit does not matter.
    `seed` is for k-means++."""
    rows, m = values.shape
    portion = max(1, _ENTRIES_AT_ONCE // m)
    draws = torch.rand(rows, count, generator=torch.Generator().manual_seed(seed))
    centroids = [
        _portion(part, weight, drawn.to(values.device))
        for part, drawn in zip(values.split(portion), draws.split(portion), strict=True)
    ]
    return torch.cat(centroids)


def _portion(
    values: Float[Tensor, "rows in"],
    weight: Float[Tensor, " in"],
    draws: Float[Tensor, "rows count"],
) -> Float[Tensor, "rows count"]:
    count = draws.shape[1]
    order = _argsort(values)
    points = values.gather(1, order)
    weights = (weight / weight.max().clamp(min=torch.finfo(weight.dtype).tiny))[order]
    if count <= _MOST_EQUALLY_SPACED:
        ramp = torch.linspace(0, 1, count, dtype=values.dtype, device=values.device)
        start = torch.lerp(points[:, :1], points[:, -1:], ramp)
    else:
        start = _plus_plus(points, weights, draws)
    return lloyd(points, weights, start)


def _argsort(values: Float[Tensor, "rows in"]) -> Int[Tensor, "rows in"]:
    """The order that sorts each row; on a CPU by numpy, whose sort uses vector instructions and
    takes a ninth of torch's time."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.argsort(values.numpy(), 1))
    return values.argsort(1)


def lloyd(
    points: Float[Tensor, "rows in"],
    weights: Float[Tensor, "rows in"],
    start: Float[Tensor, "rows count"],
) -> Float[Tensor, "rows count"]:
    """Lloyd's algorithm from `start`, ascending, on ascending `points`."""
    mass, moment = _cumulative(weights), _cumulative(weights.double() * points)
    tolerance = _TOLERANCE * (points - points.mean(1, keepdim=True)).square().mean(1)
    centroids = start
    moving = torch.ones(len(points), dtype=torch.bool, device=points.device)
    for _ in range(_STEPS):
        borders = _borders(points, centroids)
        inside = mass.gather(1, borders).diff(dim=1)
        mean = (moment.gather(1, borders).diff(dim=1) / inside).to(points.dtype)
        # a mean lies among its points, also where sums of very unequal weights cancel
        first = points.gather(1, borders[:, :-1].clamp(max=points.shape[1] - 1))
        last = points.gather(1, (borders[:, 1:] - 1).clamp(min=0))
        empty = inside <= 0
        after = torch.where(empty, centroids, mean.clamp(first, last))
        empty &= moving.unsqueeze(1)
        if empty.any():
            _fill_one(points, weights, borders, after, empty)
            after = after.sort(1).values
        shift = (after - centroids).square().sum(1)
        centroids = torch.where(moving.unsqueeze(1), after, centroids)
        moving = moving & (shift > tolerance)
        if not moving.any():
            break
    return centroids


def _cumulative(values: Float[Tensor, "rows in"]) -> Float[Tensor, "rows sums"]:
    """Sums of the first 0, 1, .. m entries."""
    return pad(values.cumsum(1, dtype=torch.float64), (1, 0))


def _borders(
    points: Float[Tensor, "rows in"], centroids: Float[Tensor, "rows count"]
) -> Int[Tensor, "rows borders"]:
    """Cluster i holds the sorted points borders[i] .. borders[i + 1] - 1."""
    halfway = (centroids[:, :-1] + centroids[:, 1:]) / 2
    inner = torch.searchsorted(points, halfway)
    ends = inner.new_tensor([0, points.shape[1]]).expand(len(points), 2)
    return torch.cat([ends[:, :1], inner, ends[:, 1:]], 1)


def _fill_one(
    points: Float[Tensor, "rows in"],
    weights: Float[Tensor, "rows in"],
    borders: Int[Tensor, "rows borders"],
    centroids: Float[Tensor, "rows count"],
    empty: Bool[Tensor, "rows count"],
) -> None:
    """Move, in place, the first empty cluster of each row to the entry that costs most."""
    rows = torch.nonzero(empty.any(1)).squeeze(1)
    sizes = borders[rows].diff(dim=1)
    own = centroids[rows].flatten().repeat_interleave(sizes.flatten()).view(-1, points.shape[1])
    cost = weights[rows] * (points[rows] - own).square()
    highest, worst = cost.max(1)
    rows, worst = rows[highest > 0], worst[highest > 0]
    centroids[rows, empty[rows].int().argmax(1)] = points[rows, worst]


def _plus_plus(
    points: Float[Tensor, "rows in"],
    weights: Float[Tensor, "rows in"],
    draws: Float[Tensor, "rows count"],
) -> Float[Tensor, "rows count"]:
    """The start of k-means++, ascending, from uniform random numbers."""
    chosen, chance, distance = [], weights, None
    for draw in draws.to(points.dtype).split(1, dim=1):
        cumulative = chance.cumsum(1)
        place = torch.searchsorted(cumulative, draw * cumulative[:, -1:])
        chosen.append(points.gather(1, place.clamp_(max=points.shape[1] - 1)))
        squared = (points - chosen[-1]).square()
        distance = squared if distance is None else torch.minimum(distance, squared)
        chance = weights * distance
    return torch.cat(chosen, 1).sort(1).values
