r"""Weights corrected for the error that comes from earlier layers, in closed form.

When a layer is quantized, its input x is no longer the x_full of the full-precision model: earlier
layers left an error in it. The weight can make up for a part of that before it is quantized.

Letters: tokens x and x_full are columns here; W the original weight, W' the corrected one, Q a
quantized one; `C = sum x x^T`, `D = sum x_full x^T`, `R = D - C`; r the ridge.

    f(W') = sum |W x_full - W' x|^2 + r |W' - W|^2.

f' = 0 gives `W' (C + r I) = W (D + r I)`, so

    W' = W + W (D - C) (C + r I)^-1.

What follows is any method on W' instead of W, with the statistics of x. That aims at the
full-precision output: f is a parabola with curvature C + r I and its minimum at W', hence for every
Q, with the trace taken of the right side,

    sum |W x_full - Q x|^2 + r |Q - W|^2 = tr (Q - W') (C + r I) (Q - W')^T + const.

So GPTQ on W' with damping r is GPTQ's greedy algorithm for the left side. This is QEP's correction
at full strength (Arai and Ichikawa 2025); Qronos (Zhang et al. 2025) reaches the same roundings at
r = 0 from its second column on, and GPTAQ (Li et al. 2025) spreads the residual over later columns
instead of solving for it.

A layer that writes to the residual stream (o, down) may make up for what the stream lacks, too.
Its output is added to s, and s_full - s is an error that all later layers read; as far as x tells
of it, the layer can take it away. With a share a of that error and `S = a sum (s_full - s) x^T`
the goal is `W x_full + a (s_full - s)`, the goal's moment with x `W D + S`, and

    W' = W + (W (D - C) + S) (C + r I)^-1.

All of it (a = 1) is too much: what is seen on the calibration text is in part that text's alone,
and the layers that follow take their share as well. This part is ours.

The ridge is in units of C's mean diagonal (over columns with input), as GPTQ's damping is, and it
matters: the error of the earlier layers on the calibration tokens is only a sample of their error,
and without a ridge directions with little energy are corrected by noise (docs/LOG.md has figures).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import NumericalError
from q2n.linalg.factor import mean_energy


def corrector(
    gram: Float[Tensor, "in in"], residual: Float[Tensor, "any in"], ridge: float, *, name: str
) -> Float[Tensor, "any in"]:
    """`R (C + r I)^-1`, R = D - C the residual moment: W' = W + W times this. Of `W R + S` in place
    of R it is W' - W itself. In float64 where float32 fails.

    Columns without input are left as they are, whatever the ridge: f does not depend on them.

    Raises:
        NumericalError: C + r I is not positive definite; names the layer `name`.
    """
    mean = mean_energy(gram.diagonal())
    for dtype in (gram.dtype, torch.float64):
        damped = gram.to(dtype, copy=True)
        diagonal = damped.diagonal()
        # a column of C without input is 0, as is that of R: with any pivot its solution is 0
        diagonal.copy_(torch.where(diagonal == 0, mean, diagonal + ridge * mean))
        lower, info = torch.linalg.cholesky_ex(damped)
        if info == 0:
            return torch.cholesky_solve(residual.T.to(dtype), lower).T.to(gram.dtype)
    raise NumericalError(
        f"{name}: the correction's matrix of shape {tuple(gram.shape)} is not positive definite "
        f"with a correction ridge of {ridge:g}; raise it"
    )
