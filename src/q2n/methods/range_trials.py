"""Ranges that are tried on every row, and judged by what comes of them.

How a grid is chosen (grids/) sees the weights before anything is rounded. Error feedback then moves
them: where inputs are nearly collinear by more than the grid's range, so that the codes saturate
and the feedback goes on from an error that nothing takes up. Which range is best is seen only
afterwards. But rows are rounded independently of each other, so all of them are rounded with one
range after another, and each keeps the result whose change of its output,

    e H e^T,    e = w - q the row's error, H the damped Gram matrix of the input,

is least. The price is a sweep a range; the factorization is shared.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.grids.fitted import FittedGrid
from q2n.kernels.column_sweep import Sweep
from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.factor import Feedback

FACTORS = (0.9, 0.8, 1.15)
"""Of the range that was fitted. Chosen on the validation split of WikiText-2 (docs/LOG.md)."""

Layer = TypeVar("Layer", bound=QuantizedLinear)


def ranges_around(
    fitted: FittedGrid[Layer], *others: FittedGrid[Layer]
) -> Iterator[FittedGrid[Layer]]:
    """The fitted grid, others, and the fitted one narrower and wider."""
    yield fitted
    yield from others
    if fitted.times is not None:
        yield from map(fitted.times, FACTORS)


def best_rows(
    grids: Iterator[FittedGrid[Layer]],
    rounded: Callable[[FittedGrid[Layer]], Sweep],
    back: Feedback,
) -> Layer:
    """Each row of the weight on that grid of those tried which changes its output least; of equal
    ones the first. The record has the share of rows on each.

    Args:
        rounded: the weight of a grid rounded to it, with the feedback `back`.
    """

    def result(grid: FittedGrid[Layer]) -> tuple[Layer, Float[Tensor, " out"]]:
        swept = rounded(grid)
        layer = grid.stored(swept.layer_codes(back.order, grid.weight.shape[1]))
        return layer, back.cost(swept.error)

    best, least = result(next(grids))
    choice, number = torch.zeros_like(least, dtype=torch.int64), 0
    for number, grid in enumerate(grids, 1):
        layer, cost = result(grid)
        better = cost < least
        best, least = best.with_rows(better, layer), torch.minimum(cost, least)
        choice.masked_fill_(better, number)
    shares = torch.bincount(choice, minlength=number + 1) / len(choice)
    return best.with_record(range_shares=[round(float(share), 4) for share in shares])
