r"""A layer in another basis of its inputs and outputs, in which it computes the same.

With U, V orthogonal and s > 0, both of them for one side of the layer,

    W' = U W diag(s) V^T,    x' = V diag(s)^-1 x,    W' x' = U (W x):

the outputs are turned by U, no error grows or shrinks: `|W' x' - Q' x'| = |W x - Q x|` for
`Q = U^T Q' V diag(s)^-1`. Tokens are rows in the code.
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
    right: KroneckerMatrix | None = None
    rescale: Float[Tensor, " in"] | None = None

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


def balancing(
    weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]
) -> Float[Tensor, " in"]:
    r"""QuIP's s, which makes `tr(H') |W'|^2` least, `H' = diag(s)^-1 H diag(s)^-1`:

        sum_j H_jj / s_j^2  *  sum_j s_j^2 (W^T W)_jj

    is least (Cauchy-Schwarz) where both sums have proportional terms,
    `s_j^4 = H_jj / (W^T W)_jj`. H is taken in units of its largest entry, both are at least 1e-8.
    """
    energy = gram.diagonal() / gram.abs().max().clamp(min=torch.finfo(gram.dtype).tiny)
    norms = weight.square().sum(0)
    return (energy.clamp(min=1e-8) / norms.clamp(min=1e-8)) ** 0.25
