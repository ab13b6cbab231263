r"""Orthogonal matrices that are applied fast: Kronecker products of small factors.

`M = F_1 (x) F_2 (x) .. (x) F_k` maps x, read as an array of shape (n_1, .., n_k), by one small
product along each axis: n (n_1 + .. + n_k) multiplications instead of n^2. A factor is a Hadamard
matrix over sqrt(n_i), a dense orthogonal matrix, or the identity (an axis that is left alone).

A vector x becomes M x. Rows of a weight are such vectors, so the weight of a layer that is to read
M x instead of x is `apply(W) = W M^T`, as `W M^T M x = W x`; one that is to write M y instead of
y is `M W = apply(W^T)^T`. The same `apply` serves both and the activations: order-K Hadamard
matrices are not symmetric, so M and M^T must not be confused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.linalg.hadamard import hadamard, hadamard_orders

_ROWS = 4096
"""Rows of a weight that are held in float64 at once."""


@dataclass(frozen=True, eq=False)
class Factor:
    """One factor of a Kronecker product."""

    kind: str
    """hadamard, dense or identity."""
    size: int
    matrix: Float[Tensor, "n n"] | None
    """In float64; None for the identity."""

    @classmethod
    def hadamard(cls, order: int) -> Self:
        return cls("hadamard", order, hadamard(order).double() * order**-0.5)

    @classmethod
    def identity(cls, size: int) -> Self:
        return cls("identity", size, None)

    @classmethod
    def haar(cls, size: int, seed: int) -> Self:
        """Uniform over the orthogonal matrices: QR of a Gaussian matrix, R's diagonal positive."""
        generator = torch.Generator().manual_seed(seed)
        gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        return cls("dense", size, q * r.diagonal().sign())

    def to(self, like: Tensor) -> Self:
        """The same factor, its matrix on the device and in the dtype of a tensor."""
        matrix = None if self.matrix is None else self.matrix.to(like)
        return type(self)(self.kind, self.size, matrix)

    def to_json(self) -> dict[str, Any]:
        """Plain values; entries survive the way through JSON as they are."""
        entries = self.matrix.tolist() if self.kind == "dense" and self.matrix is not None else None
        return {"kind": self.kind, "size": self.size} | ({"matrix": entries} if entries else {})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        if values["kind"] == "hadamard":
            return cls.hadamard(values["size"])
        entries = values.get("matrix")
        matrix = None if entries is None else torch.tensor(entries, dtype=torch.float64)
        return cls(values["kind"], values["size"], matrix)


@dataclass(frozen=True, eq=False)
class Rotation:
    """`x -> (F_1 (x) .. (x) F_k) diag(signs) x`."""

    factors: tuple[Factor, ...]
    signs: Float[Tensor, " n"] | None = None
    """+1 and -1, or None for +1 everywhere."""

    @property
    def size(self) -> int:
        return prod(factor.size for factor in self.factors)

    def apply(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Each vector of the last axis, rotated; computed in float32 or, for float64, in that."""
        work = _working(x)
        if self.signs is not None:
            work = work * self.signs.to(work)
        left = 1
        for factor in self.factors:
            if factor.matrix is not None:
                work = _along_axis(work, factor.matrix.to(work), left)
            left *= factor.size
        return work.to(x.dtype)

    def apply_exactly(
        self, weight: Float[Tensor, "out n"], gain: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, "out n"]:
        """Each row of a weight, times a gain, rotated in float64 and rounded once."""
        gain = torch.ones(weight.shape[1]) if gain is None else gain
        parts = [self.apply(rows.double() * gain.double()) for rows in weight.split(_ROWS)]
        return torch.cat([part.to(weight.dtype) for part in parts])

    def apply_to_outputs(self, weight: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """`M W`, in float64 and rounded once: a layer that writes M y where it wrote y."""
        return self.apply_exactly(weight.T.contiguous()).T.contiguous()

    def ready_for(self, x: Tensor) -> Self:
        """The same rotation with its matrices where and as `apply(x)` needs them; this object if
        they are so already."""
        work = _working(x[:0])
        matrices = [*(factor.matrix for factor in self.factors), self.signs]
        if all(m is None or (m.device, m.dtype) == (x.device, work.dtype) for m in matrices):
            return self
        signs = None if self.signs is None else self.signs.to(work)
        return type(self)(tuple(factor.to(work) for factor in self.factors), signs)


def _working(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def mixing_factors(width: int, seed: int) -> tuple[Factor, ...]:
    """Factors that mix a whole axis: Hadamard matrices where their orders make up the width, else
    a Haar matrix for its odd part and Hadamard matrices for the power of two."""
    orders = hadamard_orders(width)
    if orders is not None:
        return tuple(Factor.hadamard(order) for order in orders)
    power = width & -width
    rest = hadamard_orders(power) or ()
    return (Factor.haar(width // power, seed), *(Factor.hadamard(order) for order in rest))


def random_signs(width: int, seed: int) -> Float[Tensor, " n"]:
    """+1 and -1, each with probability 1/2."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (width,), generator=generator).float() * 2 - 1


def from_json(factors: Sequence[Mapping[str, Any]]) -> Rotation:
    """A rotation without signs, from its factors' plain values."""
    return Rotation(tuple(Factor.from_json(values) for values in factors))


def _along_axis(x: Tensor, matrix: Float[Tensor, "n n"], left: int) -> Tensor:
    """The product along the axis of size n that has `left` entries of x's last axis before it."""
    n = len(matrix)
    right = x.shape[-1] // (left * n)
    if right == 1:
        return (x.reshape(-1, n) @ matrix.T).reshape(x.shape)
    return (matrix @ x.reshape(-1, n, right)).reshape(x.shape)
