r"""A sweep in segments of rows, each with feedback from those before it (YAQA, Tseng et al. 2025).

The rows of a layer are rounded independently of each other where all outputs count alike. They do
not: with `F` the second moments of the gradients of the model's predictions at the layer's output
(out x out), and `H` those of its input, the divergence grows by about

    tr(F E H E^T),    E = W - Q        (Fisher's matrix of the layer as a Kronecker product).

The loss is the same for rows with F as for columns with H, so what an error in a row costs is made
up for by the rows that follow, as in GPTQ by the columns. With `F = R R^T` (linalg/factor.py) and
segment s of the rows

    W'_s = W_s + (R_{<s, s} R_ss^-1)^T E_{<s},

and W'_s is rounded by a sweep over its columns that knows nothing of the other rows. This is equal
to YAQA's recursion, row by row and column by column, where a segment is one row. Rows within a
segment take no feedback from each other.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.kernels.column_sweep import Sweep
from q2n.linalg.factor import pending

LONGEST = 64
"""Rows of a segment, where the grid does not say."""


def even_borders(rows: int) -> list[int]:
    """The first row of each segment, and the number of rows."""
    return [*range(0, rows, LONGEST), rows]


def sweep_segments(
    weight: Float[Tensor, "in out"],
    matrix: Float[Tensor, "out out"],
    borders: Sequence[int],
    rounded: Callable[[Float[Tensor, "in rows"], int, int], Sweep],
) -> Sweep:
    """The sweep of all rows; its error refers to `weight`.

    Args:
        matrix: M of F, strictly upper triangular: `R diag(R)^-1 - I`.
        borders: the first row of each segment, and the number of rows.
        rounded: rounds rows a:b from the values that it is given.
    """
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    error = torch.empty_like(weight)
    for a, b in pairwise(borders):
        target = pending(weight.T, error.T, matrix, a, b).T.contiguous()
        swept = rounded(target, a, b)
        codes[:, a:b] = swept.codes
        error[:, a:b] = swept.error + (weight[:, a:b] - target)
    return Sweep(codes, error)


def segment_targets(
    weight: Float[Tensor, "out in"],
    quantized: Float[Tensor, "out in"],
    matrix: Float[Tensor, "out out"],
    borders: Sequence[int],
) -> Float[Tensor, "out in"]:
    """The values W'_s from which `sweep_segments` had its rows rounded to `quantized`."""
    error = weight - quantized
    return torch.cat([pending(weight, error, matrix, a, b) for a, b in pairwise(borders)])
