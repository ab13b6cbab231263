r"""GPTQ's error feedback from one Cholesky factor and no inverse.

Letters: `H` the Gram matrix of the layer's input (m x m, damped, columns in visiting order);
`W` the original weight, `Q` the quantized weight, `E = W - Q`; w_j, q_j, E_j their columns.

GPTQ as it is published (Frantar et al. 2022): `H^-1 = U^T U`, U upper triangular; columns are
rounded in order, column j from its updated value w'_j, and the error `err_j = (w'_j - q_j) / U_jj`
is taken from the columns to the right, `w'_k -= err_j U_jk` for k > j.

Summed up, column j has received `w'_j = w_j - sum_{i<j} err_i U_ij`, and by definition
`w'_j - q_j = err_j U_jj`, so `w_j - q_j = sum_{i<=j} err_i U_ij`: `E = Err U`. With `R = U^-1`,
upper triangular as well, `Err = E R`, and put back (`R_jj = 1 / U_jj`)

    w'_j = q_j + (E R)_j / R_jj = w_j + sum_{i<j} (w_i - q_i) R_ij / R_jj.

The original W stays as it is, and all that is needed is `M = R diag(R)^-1 - I`, strictly upper
triangular: `w'_j = w_j + (E M)_j`. R comes straight from H: `H = U^-1 U^-T = R R^T`, a Cholesky
factorisation that starts in the last row and column. With J the reversal of order,
`J H J = L L^T` gives `R = J L J`. LDLQ's feedback is the same matrix (Chee et al. 2023, QuIP).

`pending` gives the values that GPTQ's working copy of W holds at the start of a block [a, b):
updated for the columns before a, not for those within. From `E = Err U`,
`Copy - W = -Err_{<a} U_{<a, ab}`; by blocks of `U R = I`,
`U_{<a, ab} = -U_{<a} R_{<a, ab} R_ab^-1`, so `Copy = W + E_{<a} R_{<a, ab} R_ab^-1`, in which R may
be replaced by `M + I`, as `diag(R)^-1` cancels.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from q2n.errors import NumericalError
from q2n.linalg.finite import all_finite

_LARGEST_DAMPING = 1.0
"""Damping by the mean of the diagonal repairs every Gram matrix that is one up to rounding."""
_SMALLEST_RETRY = 1e-4


@dataclass(frozen=True, eq=False)
class Feedback:
    """What is added to columns before they are rounded: `W[:, order] + E[:, order] @ matrix`."""

    matrix: Float[Tensor, "in in"]
    """M, strictly upper triangular, rows and columns in visiting order."""
    diagonal: Float[Tensor, " in"]
    """R_jj = 1 / U_jj in visiting order: the square root of what an error in column j costs
    once the later columns have made up for it as far as they can."""
    order: Int[Tensor, " in"]
    """The layer's columns in visiting order."""
    dead: Bool[Tensor, " in"]
    """Columns, in the layer's own order, whose input is always 0."""
    damping: float
    """The damping used, as a share of the mean of H's diagonal."""

    @property
    def record(self) -> dict[str, float]:
        """What a layer's record says of it."""
        return {"damping": self.damping}

    def cost(self, error: Float[Tensor, "in out"]) -> Float[Tensor, " out"]:
        """What an error (transposed, in visiting order) does to each output, `e H e^T` of each
        row e of E: `H = R R^T` and `R = (M + I) diag(R)`, so it is the squared length of e R."""
        return (error + self.matrix.T @ error).mul_(self.diagonal.unsqueeze(1)).square_().sum(0)

    @property
    def importance(self) -> Float[Tensor, " in"]:
        """`diagonal` in the layer's own order, for whatever weighs columns against each other. A
        dead column counts as little as the least of the others: it takes next to nothing from
        them, and its weights, which other text may use, still count (our choice)."""
        own = torch.empty_like(self.diagonal)
        own[self.order] = self.diagonal
        live = own[~self.dead]
        return own.masked_fill(self.dead, float(live.min())) if len(live) else own


def feedback(
    gram: Float[Tensor, "in in"],
    damping: float,
    *,
    descending: bool = False,
    order: Int[Tensor, " in"] | None = None,
    name: str = "matrix",
    what: str = "Gram matrix of its input",
    flag: str = "--damping",
) -> Feedback:
    """Factor `gram + damping * mean(diag) * I`.

    Args:
        gram: `H` before damping, in units of activation squared.
        damping: a share of the mean diagonal over the columns that are not dead.
        descending: visit the columns with the largest diagonal first (act-order).
        order: else visit them in this order; None for the layer's own.
        name: of the layer, for the error.
        what: the matrix is, for the error.
        flag: that sets the damping, for the error.

    A dead column gets the mean of the others on its diagonal. So it affects no other and none
    affects it: its original weight is rounded, which costs nothing on the calibration text and
    keeps what other text may use. (GPTQ sets the weight to 0, and the diagonal to 1, whose weight
    in the mean depends on the units of the activations.) If the matrix is not positive definite,
    the damping is raised tenfold up to 1, and then all of them are tried in float64.

    Raises:
        NumericalError: no damping helps; names the layer `name` and the dampings tried.
    """
    energies = gram.diagonal().contiguous()
    dead, mean = energies == 0, float(mean_energy(energies))
    diagonal = torch.where(dead, mean, energies)
    if descending:
        order = torch.argsort(diagonal, descending=True, stable=True)
    elif order is None:
        order = torch.arange(len(diagonal), device=gram.device)
    backwards = order.flip(0)
    reversed_gram = gram[backwards.unsqueeze(1), backwards]
    tried = _dampings(damping)
    for dtype in dict.fromkeys((gram.dtype, torch.float64)):
        damped = reversed_gram.to(dtype)
        for share in tried:
            damped.diagonal().copy_((diagonal[backwards] + share * mean).to(dtype))
            lower, info = torch.linalg.cholesky_ex(damped)
            if info == 0 and all_finite(lower.diagonal()):
                del damped, reversed_gram  # as large as a block's largest weight, or larger
                upper = lower.flip(0, 1)
                pivots = upper.diagonal().clone()
                matrix = upper.div_(pivots).triu_(1).to(gram.dtype)
                return Feedback(matrix, pivots.to(gram.dtype), order, dead, share)
    raise NumericalError(
        f"{name}: the {tuple(gram.shape)} {what} is not positive definite with "
        f"dampings {', '.join(f'{share:g}' for share in tried)}, even in float64; "
        f"give a {flag} above these, or leave the layer in full precision with --ignore"
    )


def mean_energy(energies: Float[Tensor, " in"]) -> Float[Tensor, ""]:
    """The mean of the Gram matrix's diagonal over the columns that are not dead, the unit of every
    damping and ridge; 1 where all are dead."""
    live = (energies != 0).sum()
    return torch.where(live > 0, energies.sum() / live, 1.0)


def _dampings(first: float) -> list[float]:
    """The first damping, then tenfold steps up to the largest."""
    start = max(first, _SMALLEST_RETRY / 10)
    steps = math.ceil(math.log10(_LARGEST_DAMPING / start) - 1e-9)
    return [first, *(min(start * 10**k, _LARGEST_DAMPING) for k in range(1, steps + 1))]


def damped(gram: Float[Tensor, "in in"], back: Feedback) -> Float[Tensor, "in in"]:
    """H in visiting order, as it was factored."""
    hessian = gram[back.order][:, back.order]
    energies = hessian.diagonal().contiguous()
    mean = mean_energy(energies)
    hessian.diagonal().copy_(torch.where(energies == 0, mean, energies) + back.damping * mean)
    return hessian


def pending(
    weight: Float[Tensor, "in out"],
    error: Float[Tensor, "quantized out"],
    matrix: Float[Tensor, "in in"],
    a: int,
    b: int,
) -> Float[Tensor, "block out"]:
    """Columns a:b of GPTQ's working copy when the columns before a are quantized.

    Arguments and result are transposed (a row for each column) and in visiting order. `matrix` is
    M; `error` holds at least the columns before a."""
    carried = torch.linalg.solve_triangular(
        matrix[a:b, a:b].T, matrix[:a, a:b].T, upper=False, unitriangular=True
    )
    return torch.addmm(weight[a:b], carried, error[:a])


def compensated(
    weight: Float[Tensor, "out in"],
    quantized: Float[Tensor, "out in"],
    back: Feedback,
    block_size: int,
) -> Float[Tensor, "out in"]:
    """What GPTQ's working copy of `weight` holds when its columns are rounded to `quantized`: each
    block of visited columns updated for those of all earlier blocks, not for those of its own. In
    the layer's own order."""
    order, m = back.order, len(back.order)
    ordered, error = weight.T[order], (weight - quantized).T[order]
    borders = [(a, min(a + block_size, m)) for a in range(0, m, block_size)]
    copy = torch.cat([pending(ordered, error, back.matrix, a, b) for a, b in borders])
    return torch.empty_like(weight).index_copy_(1, order, copy.T)
