r"""A ridge chosen by the least error on windows that the fit has not seen.

The windows are split into two folds, 1 and 2, each with its own sums C and D, which add up to those
of all windows (folds.py). For each ridge of a grid, the closed form is solved on one fold and its
squared error is computed from the other fold's sums; the folds change places, both errors are added
up, and the ridge with the least is used on the sums of both. No forward pass, no perplexity. One
thing it cannot see: the layers before this one were fitted on both folds.

*Correction* (correction.py, whose letters these are). With `C_1 = U diag(v) U^T` and
`d_k = 1 / (v_k + r)` the change of the weight is `W R_1 U diag(d) U^T`. Its error on fold 2 is, up
to a constant,

    d^T [(P^T P) o (U^T C_2 U)] d - 2 sum_k d_k (P^T S)_kk,    P = W R_1 U,  S = W R_2 U,

o the elementwise product: one small quadratic form for all ridges. Of a layer that writes to a
residual stream, `W R + S` (statistics.py) takes the place of `W R`.

*Factors* (output_alpha.py, whose letters these are). With A, b of each fold and
`delta = alpha - 1` fitted on fold 1, the error on fold 2 is, up to a constant,
`delta^T A_2 delta - 2 (b_2 - A_2 1)^T delta`, summed over rows. Where the fit counts some
directions of the input only, those enter A and b of fold 1, and all of them the error: so
thresholds can be compared by it as well.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.linalg import output_alpha
from q2n.linalg.factor import mean_energy
from q2n.linalg.spectrum import of_site
from q2n.linalg.statistics import InputStatistics

GRID = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Ridges that are tried."""

Products = Sequence[tuple[Float[Tensor, "in in"], Float[Tensor, "out in"]]]
"""`gram` and `goal` of each of the two folds, as `output_alpha.per_group` takes them."""


def correction_ridge(
    weight: Float[Tensor, "out in"], statistics: InputStatistics, *, name: str
) -> float:
    """The ridge for `correction.corrector`, in units of the mean diagonal of C. The statistics
    have two folds with CROSS.

    Raises:
        NumericalError: no decomposition of a fold's C; names the layer `name`.
    """
    first, second = statistics.folds
    errors = torch.zeros(len(GRID), dtype=torch.float64)
    for fitted, seen in ((first, second), (second, first)):
        errors += _correction_errors(weight, fitted, seen, name)
    return GRID[int(errors.argmin())]


def _correction_errors(
    weight: Float[Tensor, "out in"], fitted: InputStatistics, seen: InputStatistics, name: str
) -> Float[Tensor, " ridges"]:
    spectrum = of_site(fitted, name=name)
    values, vectors = spectrum.values.double(), spectrum.vectors
    turned = seen.once("turned", lambda: vectors.T @ seen.gram @ vectors)
    change = weight @ fitted.once("residual", lambda: fitted.residual @ vectors)
    target = weight @ seen.once("turned residual", lambda: seen.residual @ vectors)
    if fitted.stream_lack is not None and seen.stream_lack is not None:
        change, target = change + fitted.stream_lack @ vectors, target + seen.stream_lack @ vectors
    form = ((change.T @ change) * turned).double()
    line = (change * target).sum(0, dtype=torch.float64)
    shift = mean_energy(fitted.gram.diagonal())
    errors = []
    for ridge in GRID:
        d = 1 / (values + ridge * shift)
        errors.append(d @ form @ d - 2 * d @ line)
    return torch.stack(errors).cpu()


def alpha_ridge(
    quantized: Float[Tensor, "out in"],
    folds: Products,
    filtered: Products,
    size: int,
) -> tuple[float, float]:
    """The ridge for factors of `size` columns each, in units of the row's energy, and its error up
    to a constant.

    Args:
        quantized: Q.
        folds: what the error is computed from.
        filtered: what the factors are fitted on: `folds`, or with some directions only.
    """
    errors = torch.zeros(len(GRID), dtype=torch.float64)
    for rows in output_alpha.row_chunks(quantized, size):
        seen = _systems(quantized, folds, rows, size)
        fitted = seen if filtered is folds else _systems(quantized, filtered, rows, size)
        pairs = zip(fitted, seen[::-1], strict=True)
        for (matrix, right), (seen_matrix, seen_right) in pairs:
            line = seen_right.double() - seen_matrix.double().sum(2)
            for position, ridge in enumerate(GRID):
                change = output_alpha.solve(matrix, right, ridge).double() - 1
                pushed = torch.einsum("nhk,nk->nh", seen_matrix.double(), change)
                errors[position] += ((pushed - 2 * line) * change).sum().cpu()
    best = int(errors.argmin())
    return GRID[best], float(errors[best])


def _systems(
    quantized: Float[Tensor, "out in"], folds: Products, rows: slice, size: int
) -> list[tuple[Float[Tensor, "rows g g"], Float[Tensor, "rows g"]]]:
    """A and b of some rows on each fold."""
    return [output_alpha.system(quantized[rows], gram, goal[rows], size) for gram, goal in folds]
