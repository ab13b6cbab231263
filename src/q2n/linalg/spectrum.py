"""Eigenvectors of a Gram matrix, and how many of them carry the layer's input.

For `G = U diag(values) U^T`, values descending, a rule chooses `start`: the principal
directions are `U[:, :start]`, the (approximate) null space is `U[:, start:]`. A rule
that finds no null space worth the name returns `start = 0`: everything counts as null
space, the projector is the identity and the null-space step changes nothing.

Energy rule (`ratio`, Eq 6 of the paper): the top value is set aside; of the others,
`mu_j = values[j]` for j = 1..m-1, take the smallest k with

    R(k) = sum_{j>k} mu_j / sum_{j<=k} mu_j <= t.

Three readings of the index differ by one direction (`Index`):

- paper: the dropped top direction is principal too, `start = k + 1`;
- algorithm1: Algorithm 1 read literally, `U_1 = U[:, k:]`, `start = k`;
- released: the released code skips one value between both sums (smallest i >= 1 with
  `sum_{j>i+1} mu_j / sum_{j<=i} mu_j <= t`, `start = i + 1`), so `start` is the paper's
  or one less; where no i qualifies it silently does nothing, here `start = 0`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import NumericalError

Decomposition = Literal["eigh", "svd"]
Index = Literal["paper", "algorithm1", "released"]

_RELATIVE_GUARD = 1e-12
"""A sum below this share of the whole energy is no denominator. The released code's
guard is absolute, so its result depends on the units of the activations."""


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
    """Spectrum of a symmetric positive semidefinite matrix, in its own dtype; in float64
    where that does not converge.

    Raises:
        NumericalError: neither converges; the message names the layer `name`.
    """
    for dtype in (gram.dtype, torch.float64):
        try:
            values, vectors = _descending(gram.to(dtype), how)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        return Spectrum(values.clamp(min=0).to(gram.dtype), vectors.to(gram.dtype))
    raise NumericalError(
        f"{name}: {how} of the {tuple(gram.shape)} Gram matrix of its input does not converge, "
        "even in float64; check the activations, or calibrate on more text"
    )


def _descending(gram: Float[Tensor, "in in"], how: Decomposition) -> tuple[Tensor, Tensor]:
    if how == "svd":
        vectors, values, _ = torch.linalg.svd(gram)
        return values, vectors
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0), vectors.flip(1)


def ratio(values: Float[Tensor, " in"], threshold: float, index: Index = "paper") -> int:
    """`start` by the energy rule; see the module's text. 0 if there is no energy at all."""
    energy = values.double()
    guard = _RELATIVE_GUARD * float(energy.sum())
    kept = energy[1:].cumsum(0)
    total = kept[-1] if len(kept) else energy.new_zeros(())
    if index == "released":
        found = _first((kept[:-1] > guard) & (total - kept[1:] <= threshold * kept[:-1]))
        return 0 if found is None else found + 2
    if float(energy[0]) <= 0:
        return 0
    found = _first((kept > guard) & (total - kept <= threshold * kept))
    k = 0 if found is None else found + 1  # none: all energy is in the top direction
    return k + 1 if index == "paper" else k


def matrix_rank(values: Float[Tensor, " in"]) -> int:
    """`start` = numerical rank: values above `largest * m * eps`, eps of the values' dtype."""
    floor = values[0] * len(values) * torch.finfo(values.dtype).eps
    return int((values > floor).sum())


def adam_nscl(values: Float[Tensor, " in"]) -> int:
    """`start` = number of values above 50 times the smallest (Wang et al., Adam-NSCL).

    The smallest value of a singular matrix is rounding noise, which would leave an
    empty null space; so the smallest value above the numerical rank's floor counts."""
    rank = matrix_rank(values)
    return int((values > 50 * values[rank - 1]).sum()) if rank else 0


def _first(mask: Tensor) -> int | None:
    hits = mask.nonzero()
    return int(hits[0]) if len(hits) else None
