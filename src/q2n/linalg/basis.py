r"""A layer in another basis of its inputs and outputs, in which it computes the same.

Letters: W the weight [out, in], Q a quantized one; x an input (a column here, a row in the code),
`H = sum x x^T`; U and V orthogonal (out x out, in x in); s > 0 a vector over the input channels.

    W' = U W diag(s) V^T,    x' = V diag(s)^-1 x,    W' x' = U (W x).

The outputs are turned by U, so no error grows or shrinks: `|W' x' - Q' x'| = |W x - Q x|` for
`Q = U^T Q' V diag(s)^-1`. What is quantized is W'; U and V spread its outliers, s balances the
channels (incoherence processing: QuIP, Chee et al. 2023, section 4 and Algorithms 1 and 2).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.linalg.kronecker import KroneckerMatrix


@dataclass(frozen=True, eq=False)
class Basis:
    """U, V and s; None stands for the identity."""

    left: KroneckerMatrix | None = None
    """U."""
    right: KroneckerMatrix | None = None
    """V."""
    rescale: Float[Tensor, " in"] | None = None
    """s."""

    def weight(self, w: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """`U W diag(s) V^T`."""
        if self.rescale is not None:
            w = w * self.rescale.to(w)
        if self.right is not None:
            w = self.right.apply(w)
        return w if self.left is None else self.left.apply_to_outputs(w)

    def weight_back(self, w: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """`U^T W' V diag(s)^-1`: the inverse of `weight`."""
        if self.left is not None:
            w = self.left.undo_at_outputs(w)
        if self.right is not None:
            w = self.right.undo(w)
        return w if self.rescale is None else w / self.rescale.to(w)

    def inputs(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens in"]:
        """Rows `V diag(s)^-1 x`."""
        if self.rescale is not None:
            x = x / self.rescale.to(x)
        return x if self.right is None else self.right.apply(x)

    def outputs(self, y: Float[Tensor, "tokens out"]) -> Float[Tensor, "tokens out"]:
        """Rows `U y`."""
        return y if self.left is None else self.left.apply(y)


def balancing(
    weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]
) -> Float[Tensor, " in"]:
    r"""QuIP's s, which minimises `tr(H') |W'|^2` with `H' = diag(s)^-1 H diag(s)^-1`:

        sum_j H_jj / s_j^2  *  sum_j s_j^2 (W^T W)_jj

    is least (Cauchy-Schwarz) where the terms of both sums are proportional,
    `s_j^4 = H_jj / (W^T W)_jj`. A common factor of s does not matter, so H (`gram`, in units of
    activation squared) is divided by its largest entry; then both diagonals are at least 1e-8. A
    dead channel, which would get the least s and all noise with it, counts as the mean of the
    others.
    """
    diagonal = gram.diagonal()
    live = (diagonal > 0).sum().clamp(min=1)
    diagonal = torch.where(diagonal > 0, diagonal, diagonal.sum() / live)
    energy = diagonal / gram.abs().max().clamp(min=torch.finfo(gram.dtype).tiny)
    norms = weight.square().sum(0)
    return (energy.clamp(min=1e-8) / norms.clamp(min=1e-8)) ** 0.25
