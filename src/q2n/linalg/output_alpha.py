r"""Factors fitted to the layer's output: least squares toward a target, per row or per group.

Letters: `x` a token of the layer's input as the quantized prefix of the model gives it, `x_full`
the one of the full-precision model, both rows; `w` a row of the original weight, `q` of the
quantized one. Sums run over the calibration tokens: `C = sum x^T x`, `D = sum x_full^T x`. The
target is the output of the full-precision model with `M = D`, and that of the same layer on the
same input with `M = C`.

A row is cut into g groups of columns, `q = (q_1 .. q_g)`, and each gets a factor alpha_h. The
squared distance of `sum_h alpha_h q_h x_h` from the target is a parabola with

    A_hk = q_h C_hk q_k^T        b_h = (w M)_h q_h^T

and a ridge, rho in units of the row's energy `1^T A 1 = q C q^T`, shared by its groups, holds each
factor near 1. Up to a constant

    f(alpha) = alpha^T A alpha - 2 b^T alpha + rho (q C q^T / g) |alpha - 1|^2.

f' = 0 is a symmetric positive system of size g for each row. What is small is solved for:

    (A + r I) (alpha - 1) = b - A 1,    r = rho q C q^T / g.

One group: `alpha = 1 + (w M q^T - q C q^T) / ((1 + rho) q C q^T)`. If x is x_full plus
uncorrelated noise, `D = C_full` and `C = C_full + N`, so for q = w alpha falls below 1:
`w C_full w^T / (w C_full w^T + w N w^T)`, a Wiener filter.

Columns that no factor multiplies (a part p of the row, zeros in q) are taken off the target:
`w M - p C` takes the place of `w M`.

Restricted to directions of the input: let `F = sum_k f_k u_k u_k^T` over the eigenvectors u_k of C,
with f_k = 1 on the principal ones and 0 in the null space (spectrum.py), or
`f_k = v_k / (v_k + v_start)` with v the eigenvalues, which falls off smoothly. The factors must
leave a residual that is uncorrelated with the part `x F q_k^T` of the row's output. C F = F C, so
that weighs direction k by f_k: `A_hk = q_h (F C)_hk q_k^T`, `b_h = (w M F)_h q_h^T`. On a part of
the tokens, whose C has other eigenvectors, `F^1/2 C F^1/2` takes the place of F C.

Sources: the target is that of the correction (correction.py, QEP); the restriction to directions is
the null-space idea of Q2N (alpha.py), stated for outputs instead of weights.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vecdot

from q2n.linalg.groups import in_groups

_CHUNK = 1 << 26
"""Numbers of the systems that are held at once: 256 MiB in float32."""


def per_group(
    quantized: Float[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    goal: Float[Tensor, "out in"],
    ridge: float,
    size: int,
) -> Float[Tensor, "out groups"]:
    """alpha for groups of `size` columns (the last may be shorter).

    Args:
        quantized: Q, zero in columns that no factor multiplies.
        gram: C, or F C.
        goal: W M, less what other columns give.
        ridge: rho, without a unit.

    Groups without energy keep 1; where A is singular, a ridge of 0 gives the smallest change."""
    return torch.cat(
        [
            solve(*system(quantized[rows], gram, goal[rows], size), ridge)
            for rows in row_chunks(quantized, size)
        ]
    )


def row_chunks(quantized: Float[Tensor, "out in"], size: int) -> list[slice]:
    """Rows whose systems are held at once."""
    groups = -(-quantized.shape[1] // size)
    step = max(1, _CHUNK // groups**2)
    return [slice(i, i + step) for i in range(0, len(quantized), step)]


def system(
    quantized: Float[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    goal: Float[Tensor, "out in"],
    size: int,
) -> tuple[Float[Tensor, "out g g"], Float[Tensor, "out g"]]:
    """A and b of each row. Arguments as `per_group`."""
    grouped = in_groups(quantized, size)
    count = grouped.shape[1]
    matrix = quantized.new_empty(len(quantized), count, count)
    for h in range(count):
        columns = slice(h * size, (h + 1) * size)
        pushed = quantized[:, columns] @ gram[columns]
        matrix[:, h] = vecdot(in_groups(pushed, size), grouped)
    return matrix, vecdot(in_groups(goal, size), grouped)


def solve(
    matrix: Float[Tensor, "out g g"], right: Float[Tensor, "out g"], ridge: float
) -> Float[Tensor, "out g"]:
    """alpha of each row from its A (`matrix`) and b (`right`). Solved in float64 and scaled to a
    unit diagonal first, since groups differ by orders of magnitude."""
    matrix, right = matrix.to(torch.float64, copy=True), right.double()
    right = right - matrix.sum(2)
    energy = matrix.sum((1, 2)).clamp(min=0) / matrix.shape[1]
    matrix.diagonal(dim1=1, dim2=2).add_((ridge * energy).unsqueeze(1))
    root = matrix.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    unit = torch.where(root > 0, 1 / root, 0.0)
    scaled = matrix * unit.unsqueeze(1) * unit.unsqueeze(2)
    scaled.diagonal(dim1=1, dim2=2).add_(_JITTER)
    right = (right * unit).unsqueeze(2)
    lower, info = torch.linalg.cholesky_ex(scaled)
    change = torch.cholesky_solve(right, lower)
    failed = info > 0
    if failed.any():  # rounding of the moments made a singular matrix indefinite
        inverse = torch.linalg.pinv(scaled[failed], rtol=_RANK, hermitian=True)
        change[failed] = inverse @ right[failed]
    return (1 + change.squeeze(2) * unit).to(torch.float32)


_JITTER = 1e-6
"""Added to a unit diagonal: keeps a singular matrix solvable in rounded arithmetic (heuristic)."""
_RANK = 1e-4
"""If that is not enough: directions below this share of the largest do not change (heuristic)."""
