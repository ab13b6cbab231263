r"""Coordinate descent on a rounded layer's loss, one column after the other (QuIP).

Letters: `H` damped Gram matrix of the input, `W` weight, `Q` its rounded form, `E = W - Q`. The
loss `tr(E H E^T)` as a function of column i alone is a parabola with its minimum at
`E_i = -sum_{j != i} E_j H_ji / H_ii`, and the best level is the one nearest to it:

    Q_i = nearest level to  W_i + sum_{j != i} E_j M_ji,    M_ji = H_ji / H_ii.

Split M by visiting order. Columns already visited in this pass contribute through its upper
triangle, which is what a column sweep feeds back; the others contribute through the lower triangle
an offset that is known before the pass. So a pass is a column sweep with another matrix.

The nearest level is one of the codes 0 .. 2^b - 1, so no step raises the loss, and the passes end
at a fixed point. (With a trellis a step may raise it, because the states at the borders of segments
are searched anew. QuIP's released code clamps after the pass, which can raise the loss, and
continues with an outdated residual.)

What it costs is the sweep's, and a GPU has kernels for that; here are matrix products alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.kernels.column_sweep import Sweep

Resweep = Callable[[Float[Tensor, "in in"], Float[Tensor, "in out"]], Sweep]
"""Rounds the layer again, with this feedback matrix and this offset."""


@dataclass(frozen=True, eq=False)
class ColumnDescent:
    """At most so many passes, for all sweeps of one layer."""

    above: Float[Tensor, "in in"]
    """M above its diagonal, in visiting order."""
    below: Float[Tensor, "in in"]
    passes: int

    @classmethod
    def of(cls, hessian: Float[Tensor, "in in"], passes: int) -> "ColumnDescent":
        """`hessian` is H in visiting order."""
        ratio = hessian / hessian.diagonal()
        return cls(ratio.triu(1), ratio.tril_(-1), passes)

    def __call__(self, start: Sweep, resweep: Resweep) -> Sweep:
        """The sweep after the passes from `start`; fewer if one changes nothing."""
        current = start
        for _ in range(self.passes):
            before, current = current, resweep(self.above, self.below.T @ current.error)
            if torch.equal(before.codes, current.codes):
                break
        return current
