r"""Greedy passes: descent on a rounded layer's loss, one column after the other (QuIP).

Letters: `H` damped Gram matrix of the input, `W` weight, `Q` its rounded form, `E = W - Q`. The
loss `tr(E H E^T)` as a function of column i alone is a parabola with its minimum at
`E_i = -sum_{j != i} E_j H_ji / H_ii`, and the best level is the one nearest to it:

    Q_i = nearest level to  W_i + sum_{j != i} E_j M_ji,    M_ji = H_ji / H_ii.

Split M by visiting order: the columns already visited in this pass give its upper triangle, which
is what a sweep feeds back; the others give the lower one, known before the pass, an offset. So a
pass is a sweep with another matrix.

Nearest level means within the codes 0 .. 2^b - 1, so that no step raises the loss, and the passes
end at a fixed point. (With a trellis one may: the states at the borders of its segments are found
anew. The released code clamps after the pass, which can raise it, and goes on with a residual from
before.)
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.kernels.column_sweep import Sweep

Resweep = Callable[[Float[Tensor, "in in"], Float[Tensor, "in out"]], Sweep]
"""The layer rounded anew with this feedback matrix and this offset."""


def descend(found: Sweep, hessian: Float[Tensor, "in in"], passes: int, resweep: Resweep) -> Sweep:
    """`found` after at most `passes` passes; `hessian` in visiting order."""
    if passes == 0:
        return found
    ratio = hessian / hessian.diagonal()
    above, below = ratio.triu(1), ratio.tril(-1)
    for _ in range(passes):
        before, found = found, resweep(above, below.T @ found.error)
        if torch.equal(before.codes, found.codes):
            break
    return found
