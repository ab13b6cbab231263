r"""Eigenvectors of a Gram matrix, and how many of them carry the layer's input.

Letters: `G = U diag(v) U^T` the m x m Gram matrix, eigenvalues v_0 >= v_1 >= .. >= 0; t the
threshold. A rule chooses `start`: the principal directions are `U[:, :start]`, the (approximate)
null space is `U[:, start:]`. A rule that finds no null space returns `start = 0`: everything counts
as null space, the projector on it is the identity and the null-space step changes nothing.

Energy rule (`ratio`; Eq 6 of the Q2N paper): the top value is set aside; of the others,
`mu_j = v_j` for j = 1 .. m - 1, take the smallest k with

    R(k) = sum_{j>k} mu_j / sum_{j<=k} mu_j <= t.

Three readings differ by one direction (`Index`):

- paper: the top direction that was set aside is principal too, `start = k + 1`;
- algorithm1: the paper's Algorithm 1 read literally, `U_1 = U[:, k:]`, so `start = k`;
- released: the released code skips one value between both sums: the smallest i >= 1 with
  `sum_{j>i+1} mu_j / sum_{j<=i} mu_j <= t`, `start = i + 1`; where no i qualifies it silently
  changes nothing, here `start = 0`.

The released `start` is the paper's or one less: its numerator is smaller, so i <= k; and R(i + 1)
has the same numerator over a larger denominator, so k <= i + 1. Example: v = (100, 4, 3, 2, 1, 0,
0, 0), t = 0.1: R(3) = 1/9, R(4) = 0, so k = 4 and `start` is 5 (paper) or 4 (algorithm1); the
released code has 0/9 at i = 3, so 4.

Other rules of the paper: `matrix_rank` and `adam_nscl`, below.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from q2n.errors import NumericalError
from q2n.linalg.statistics import InputStatistics

Decomposition = Literal["eigh", "svd"]
Index = Literal["paper", "algorithm1", "released"]

_RELATIVE_GUARD = 1e-12
"""A sum below this share of the whole energy is no denominator (heuristic). The released code's
guard is absolute, 1e-12, so its result depends on the units of the activations."""

_LARGEST_MISPLACED = 1e-4
"""What float32 may misplace, as a share of the energy behind the top (docs/LOG.md has figures)."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues, descending and clipped at 0, and eigenvectors as columns."""

    values: Float[Tensor, " in"]
    vectors: Float[Tensor, "in in"]

    def tail_energy(self, start: int) -> float:
        """Share of the energy (sum of values) that lies in the directions from `start` on."""
        total = self.values.sum(dtype=torch.float64)
        return float(self.values[start:].sum(dtype=torch.float64) / total) if total > 0 else 0.0


def decompose(
    gram: Float[Tensor, "in in"], how: Decomposition = "eigh", *, name: str = "matrix"
) -> Spectrum:
    """Spectrum of a symmetric positive semidefinite matrix, in its own dtype. Computed in float64
    where the rounding of float32 would show (`_wants_double`), or float32 does not converge.

    Raises:
        NumericalError: neither converges; the message names the layer `name`.
    """
    single = () if _wants_double(gram) else (gram.dtype,)
    for dtype in (*single, torch.float64):
        try:
            values, vectors = _descending(gram.to(dtype), how)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        return Spectrum(values.clamp(min=0).to(gram.dtype), vectors.to(gram.dtype))
    raise NumericalError(
        f"{name}: {how} of the {tuple(gram.shape)} Gram matrix of its input does not converge, "
        "even in float64; leave the layer in full precision with --ignore"
    )


def of_site(statistics: InputStatistics, how: Decomposition = "eigh", *, name: str) -> Spectrum:
    """The spectrum of an input site's Gram matrix, computed once. Raises as `decompose`."""
    return statistics.once(("spectrum", how), lambda: decompose(statistics.gram, how, name=name))


def _wants_double(gram: Float[Tensor, "in in"]) -> bool:
    """Whether rounding in float32 may move more than a small share of the energy behind the top.

    A decomposition is exact for a matrix that differs from G by a rounding error in proportion to
    v_0, so each value, and the directions of values that lie close together, are off by that. A
    massive activation makes v_0 as large as hundreds of times all others together. The Frobenius
    norm stands for v_0: it is v_0 where v_0 stands out, and larger where it does not."""
    top = float(gram.norm(dtype=torch.float64))
    rest = float(gram.diagonal().sum(dtype=torch.float64)) - top
    return len(gram) * torch.finfo(torch.float32).eps * top > _LARGEST_MISPLACED * rest


def _descending(
    gram: Float[Tensor, "in in"], how: Decomposition
) -> tuple[Float[Tensor, " in"], Float[Tensor, "in in"]]:
    if how == "svd":
        vectors, values, _ = torch.linalg.svd(gram)
        return values, vectors
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0), vectors.flip(1)


def ratio(values: Float[Tensor, " in"], threshold: float, index: Index = "paper") -> int:
    """`start` by the energy rule (above), from eigenvalues in descending order; 0 if there is no
    energy at all."""
    energy = values.double()
    guard = _RELATIVE_GUARD * float(energy.sum())
    head = energy[1:].cumsum(0)  # sum_{j<=k} mu_j at k - 1
    total = head[-1] if len(head) else energy.new_zeros(())
    if index == "released":
        place = _first((head[:-1] > guard) & (total - head[1:] <= threshold * head[:-1]))
        return 0 if place is None else place + 2
    if float(energy[0]) <= 0:
        return 0
    place = _first((head > guard) & (total - head <= threshold * head))
    k = 0 if place is None else place + 1  # none: all energy is in the top direction
    return k + 1 if index == "paper" else k


def matrix_rank(values: Float[Tensor, " in"]) -> int:
    """`start` = numerical rank: values above `largest * m * eps`, eps of the values' dtype."""
    floor = values[0] * len(values) * torch.finfo(values.dtype).eps
    return int((values > floor).sum())


def adam_nscl(values: Float[Tensor, " in"]) -> int:
    """`start` = number of values above 50 times the smallest (Adam-NSCL, Wang et al. 2021).

    The smallest value of a singular matrix is rounding noise, which would leave an
    empty null space; so the smallest value above the numerical rank's floor counts."""
    rank = matrix_rank(values)
    return int((values > 50 * values[rank - 1]).sum()) if rank else 0


def _first(mask: Bool[Tensor, " places"]) -> int | None:
    hits = mask.nonzero()
    return int(hits[0]) if len(hits) else None
