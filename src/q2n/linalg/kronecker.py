r"""Orthogonal matrices that are fast to apply: Kronecker products of small factors.

    M = P_out (F_1 (x) F_2 (x) .. (x) F_k) P_in diag(signs)

Letters: x a vector of n = n_1 n_2 .. n_k entries, F_i an orthogonal n_i x n_i matrix, P_in and
P_out permutations, signs +1 or -1. Read as an array of shape (n_1, .., n_k), x meets F_i along
axis i alone: n (n_1 + .. + n_k) multiplications instead of n^2. A factor is a Hadamard matrix over
sqrt(n_i) (hadamard.py), a dense orthogonal matrix, or the identity (an axis that is left alone). A
dense factor may have one block for each index of the other axes instead of one for all of them;
then the factors do not commute, and F_1 comes first.

How rows x are multiplied, factor by factor: in place, as a matrix times the n_i x (entries behind
the axis) pieces of each row. Where entries must move anyway (P_in is due, or the last product left
them in another order), and where each index of the other axes has its own block, one gather of
columns brings axis i last instead. It merges P_in, or the way back from axis i - 1, with the way
to axis i; P_out is merged into the last gather. The inverse is the same in reverse, with
transposed blocks.

Tokens are rows of x. A layer that is to read M x instead of x has the weight `apply(W) = W M^T`,
because `W M^T M x = W x`; one that is to write M y instead of y has `apply_to_outputs(W) = M W`.
M and M^T differ: Hadamard matrices of most orders are not symmetric.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from q2n.linalg.hadamard import hadamard

_VECTORS = 4096
"""Rows or columns of a weight that are held in float64 at once."""

Blocks = Float[Tensor, "blocks size size"]
Order = Int[Tensor, " n"]
"""A permutation: entry k of the result is entry order[k]."""


@dataclass(frozen=True, eq=False)
class Factor:
    """One factor of a Kronecker product."""

    kind: Literal["hadamard", "dense", "identity"]
    size: int
    """n, the length of its axis."""
    blocks: Float[Tensor, "blocks n n"] | None
    """In float64: one, or one for each index of the other axes, the last of them running fastest.
    None for the identity."""

    @classmethod
    def hadamard(cls, order: int) -> Self:
        """The Hadamard matrix of this order over its square root.

        Raises:
            InputError: there is none of this order.
        """
        return cls("hadamard", order, hadamard(order).double().unsqueeze(0) * order**-0.5)

    @classmethod
    def identity(cls, size: int) -> Self:
        """An axis that is left alone."""
        return cls("identity", size, None)

    @classmethod
    def dense(cls, blocks: Float[Tensor, "blocks n n"]) -> Self:
        """Any orthogonal matrix, or one for each index of the other axes."""
        return cls("dense", blocks.shape[1], blocks)

    def to(self, like: Float[Tensor, "*any"]) -> Self:
        """The same factor, its blocks on the device and in the dtype of a tensor."""
        blocks = None if self.blocks is None else self.blocks.to(like)
        return type(self)(self.kind, self.size, blocks)

    def to_json(self) -> dict[str, Any]:
        """Plain values; entries of a dense factor survive JSON to the last bit."""
        values: dict[str, Any] = {"kind": self.kind, "size": self.size}
        if self.kind != "dense" or self.blocks is None:
            return values
        return values | {"blocks": self.blocks.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        if values["kind"] == "dense":
            return cls.dense(torch.tensor(values["blocks"], dtype=torch.float64))
        make = cls.hadamard if values["kind"] == "hadamard" else cls.identity
        return make(values["size"])


@dataclass(frozen=True, eq=False)
class _Product:
    """How the rows are multiplied by one factor."""

    axis: int
    blocks: Blocks
    behind: int
    """Entries of a row behind the axis: 1 where it is the last, or was brought last."""


@dataclass(frozen=True, eq=False)
class KroneckerMatrix:
    """M, as its parts. Products are computed in float32, those of float64 in float64."""

    factors: tuple[Factor, ...]
    signs: Float[Tensor, " n"] | None = None
    """+1 and -1; None for +1 everywhere."""
    into: Order | None = None
    """P_in: entry k of what the factors see is entry into[k] of x. None for the identity."""
    out: Order | None = None
    """P_out, in the same way."""

    @cached_property
    def size(self) -> int:
        """n."""
        return prod(factor.size for factor in self.factors)

    @property
    def is_identity(self) -> bool:
        """Whether M is I by how it is made."""
        moves = (self.signs, self.into, self.out)
        return not self._products and all(part is None for part in moves)

    def apply(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """`M x` for each vector of the last axis: `x M^T` for rows x."""
        work = _signed(_working(x).reshape(-1, self.size), self.signs)
        first, *others = self._gathers
        work = _columns(work, first)
        for product, order in zip(self._products, others, strict=True):
            work = _columns(_multiply(work, product.blocks, product.behind), order)
        return work.reshape(x.shape).to(x.dtype)

    def undo(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """`M^T x` for each vector of the last axis: the inverse of `apply`."""
        work = _working(x).reshape(-1, self.size)
        *others, last = self._gathers_back
        for product, order in zip(reversed(self._products), others, strict=True):
            work = _multiply(_columns(work, order), product.blocks.mT, product.behind)
        return _signed(_columns(work, last), self.signs).reshape(x.shape).to(x.dtype)

    def apply_to_outputs(self, w: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """`M w`: each column of w is a vector. Faster than `apply` of w^T, as rows are gathered."""
        work = _rows(_signed(_working(w).mT, self.signs).mT, self.into)
        work = work.view(*self._sizes, w.shape[1])
        for product in self._products:
            work = _multiply_axis(work, product.blocks, product.axis)
        return _rows(work.reshape(w.shape), self.out).to(w.dtype)

    def undo_at_outputs(self, w: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """`M^T w`: the inverse of `apply_to_outputs`."""
        work = _rows(_working(w), _inverse(self.out)).view(*self._sizes, w.shape[1])
        for product in reversed(self._products):
            work = _multiply_axis(work, product.blocks.mT, product.axis)
        work = _rows(work.reshape(w.shape), _inverse(self.into))
        return _signed(work.mT, self.signs).mT.to(w.dtype)

    def apply_exactly(
        self, weight: Float[Tensor, "out n"], column_scale: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, "out n"]:
        """`W diag(column_scale) M^T` in float64, rounded once to the weight's dtype."""
        scale = 1.0 if column_scale is None else column_scale.double()
        return torch.cat(
            [self.apply(rows.double() * scale).to(weight.dtype) for rows in weight.split(_VECTORS)]
        )

    def apply_to_outputs_exactly(self, weight: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """`M W` in float64, rounded once to the weight's dtype."""
        parts = weight.split(_VECTORS, dim=1)
        rounded = [self.apply_to_outputs(part.double()).to(weight.dtype) for part in parts]
        return torch.cat(rounded, 1)

    def ready_for(self, x: Float[Tensor, "*any"]) -> Self:
        """The same matrix with its parts where and as `apply(x)` needs them; this object if they
        are so already."""
        work = _working(x[:0])
        parts = [*(factor.blocks for factor in self.factors), self.signs]
        if all(p is None or (p.device, p.dtype) == (x.device, work.dtype) for p in parts):
            return self
        return type(self)(
            tuple(factor.to(work) for factor in self.factors),
            None if self.signs is None else self.signs.to(work),
            None if self.into is None else self.into.to(x.device),
            None if self.out is None else self.out.to(x.device),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is None is left out."""
        vectors = {"signs": self.signs, "into": self.into, "out": self.out}
        return {"factors": [factor.to_json() for factor in self.factors]} | {
            name: vector.tolist() for name, vector in vectors.items() if vector is not None
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        factors = tuple(Factor.from_json(factor) for factor in values["factors"])
        vectors = {key: torch.tensor(value) for key, value in values.items() if key != "factors"}
        return cls(factors, **vectors)

    @property
    def _sizes(self) -> list[int]:
        return [factor.size for factor in self.factors]

    @cached_property
    def _products(self) -> list[_Product]:
        """Of the factors that are not the identity."""
        products, in_place = [], self.into is None
        for axis, factor in enumerate(self.factors):
            if factor.blocks is not None:
                in_place = in_place and len(factor.blocks) == 1
                behind = prod(self._sizes[axis + 1 :]) if in_place else 1
                products.append(_Product(axis, factor.blocks, behind))
        return products

    @cached_property
    def _gathers(self) -> list[Order | None]:
        """The gathers of `apply`: one before the first product and one after each; None where
        nothing moves. On the device of the blocks."""
        natural = torch.arange(self.size)
        into, out = (natural if order is None else order.cpu() for order in (self.into, self.out))
        # in which order the entries of P_in x lie: at first, at each product, at last
        lie = [into.argsort(), *(self._order_at(product) for product in self._products), out]
        gathers = [now.argsort()[then] for now, then in pairwise(lie)]
        device = self._products[0].blocks.device if self._products else natural.device
        return [None if torch.equal(g, natural) else g.to(device) for g in gathers]

    def _order_at(self, product: _Product) -> Order:
        places = torch.arange(self.size).view(self._sizes)
        return (places if product.behind > 1 else places.movedim(product.axis, -1)).flatten()

    @cached_property
    def _gathers_back(self) -> list[Order | None]:
        """Those of `undo`."""
        return [_inverse(order) for order in reversed(self._gathers)]


def _working(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _signed(
    x: Float[Tensor, "vectors n"], signs: Float[Tensor, " n"] | None
) -> Float[Tensor, "vectors n"]:
    return x if signs is None else x * signs.to(x)


def _inverse(order: Order | None) -> Order | None:
    return None if order is None else order.argsort()


def _columns(x: Float[Tensor, "tokens n"], order: Order | None) -> Float[Tensor, "tokens n"]:
    """Gathering columns is much faster than transposing many small matrices."""
    return x if order is None else x.contiguous().index_select(1, order.to(x.device))


def _rows(w: Float[Tensor, "n in"], order: Order | None) -> Float[Tensor, "n in"]:
    return w.contiguous() if order is None else w.index_select(0, order.to(w.device))


def _multiply(
    x: Float[Tensor, "tokens n"], blocks: Blocks, behind: int
) -> Float[Tensor, "tokens n"]:
    """The product along an axis with `behind` entries of x behind it; where that is 1, each piece
    of neighbouring columns may have its own block."""
    size = blocks.shape[1]
    if behind > 1:
        return (blocks[0].to(x) @ x.reshape(-1, size, behind)).view(x.shape)
    transposed = blocks.mT.to(x)
    if len(blocks) == 1:
        return (x.reshape(-1, size) @ transposed[0]).view(x.shape)
    pieces = x.unflatten(1, (-1, size)).transpose(0, 1)
    return torch.bmm(pieces, transposed).transpose(0, 1).flatten(1)


def _multiply_axis(
    w: Float[Tensor, "*sizes in"], blocks: Blocks, axis: int
) -> Float[Tensor, "*sizes in"]:
    """The block or blocks times w along one axis."""
    moved = w.movedim(axis, -2)
    pieces = moved.reshape(-1, *moved.shape[-2:])
    return (blocks.to(w) @ pieces).view(moved.shape).movedim(-2, axis)
