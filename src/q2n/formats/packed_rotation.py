"""A packed weight in a random basis (layers/rotated.py): the tokens are rotated, never the weight.

Before and after the product, each token as a row while there are few; many tokens are columns,
which are faster to rotate than rows.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.formats.packed_weight import FEW, PackedWeight
from q2n.kernels import dispatch
from q2n.kernels.kronecker_product import KroneckerProduct, kronecker_columns
from q2n.linalg.kronecker import KroneckerMatrix

_BLOCK = 256
"""Tokens that are rotated at once: they stay in the second cache."""


@dataclass(frozen=True, eq=False)
class Rotated(PackedWeight):
    """A packed weight in another basis."""

    inner: PackedWeight
    inputs: "KroneckerProduct | Turned"
    """`V diag(s)^-1`."""
    outputs: "KroneckerProduct | Turned"
    """`U^T`, then the output scales."""

    def product(
        self, x: Float[Tensor, "tokens in"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "tokens out"]:
        """As `PackedWeight.product`; between the rotations in float32 for few tokens."""
        if len(x) <= FEW:
            turned = self.inner.product(_turn(x, self.inputs, torch.float32), None)
            result = _turn(turned, self.outputs, x.dtype)
        else:
            result = self._of_many(x)
        return result if bias is None else result + bias.to(x.dtype)

    def _of_many(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"]:
        blocks = [
            _turn_columns(block.T.clone(memory_format=torch.contiguous_format), self.inputs)
            for block in x.split(_BLOCK)
        ]
        turned = self.inner.columns_products(blocks)
        del blocks
        result = x.new_empty(len(x), turned[0].shape[0])
        for block, y in zip(result.split(_BLOCK), turned, strict=True):
            block.copy_(_turn_columns(y, self.outputs).T)
        return result


@dataclass(frozen=True, eq=False)
class Turned:
    """A rotation whose blocks differ along an axis: torch applies it."""

    matrix: KroneckerMatrix
    back: bool
    divisor: Float[Tensor, " n"] | None
    factor: Float[Tensor, " n"] | None

    def apply(self, x: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """The rotated rows, in float32."""
        x = x.float() if self.divisor is None else x.float() / self.divisor
        x = self.matrix.undo(x) if self.back else self.matrix.apply(x)
        return x if self.factor is None else x * self.factor


def _turn(
    x: Float[Tensor, "tokens n"], rotation: KroneckerProduct | Turned, dtype: torch.dtype
) -> Float[Tensor, "tokens n"]:
    if isinstance(rotation, Turned):
        return rotation.apply(x).to(dtype)
    return dispatch.kronecker_product(x, rotation, dtype)


def _turn_columns(
    x: Float[Tensor, "n tokens"], rotation: KroneckerProduct | Turned
) -> Float[Tensor, "n tokens"]:
    if isinstance(rotation, Turned):
        return rotation.apply(x.T).T.to(x.dtype).contiguous()
    return kronecker_columns(x, rotation)


def rotation(
    matrix: KroneckerMatrix,
    back: bool,
    divisor: Float[Tensor, " n"] | None,
    factor: Float[Tensor, " n"] | None,
    device: torch.device,
) -> KroneckerProduct | Turned:
    """The matrix as the kernel takes it, `back` for its transpose."""
    matrix = matrix.ready_for(torch.empty(0, device=device))
    blocks = [factor.blocks for factor in matrix.factors]
    if any(block is None or len(block) > 1 for block in blocks) or len(blocks) != 2:
        return Turned(matrix, back, divisor, factor)
    natural = torch.arange(matrix.size, device=device)
    into, out = (natural if order is None else order for order in (matrix.into, matrix.out))
    left, right = (block[0] for block in blocks if block is not None)
    if back:
        left, right, into, out = left.T, right.T, out.argsort(), into.argsort()
    return KroneckerProduct(
        left.contiguous(), right.T.contiguous(), into.int(), out.int(), divisor, factor
    )
