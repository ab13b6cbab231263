r"""Weights corrected for the error that comes from below, in closed form.

By the time a layer is quantized its input x is no longer the x_full of the full-precision
model: earlier layers left an error in it. The layer's weight can make up for a part of that
before it is quantized. Letters as in output_alpha.py; tokens are rows:

    f(W') = sum |W x_full - W' x|^2 + r |W' - W|^2.

With `C = sum x^T x` and `D = sum x_full^T x`, f' = 0 gives `W' (C + r I) = W (D + r I)`, so

    W' = W + W (D - C) (C + r I)^-1.

The ridge r is in units of C's mean diagonal, as GPTQ's damping. It matters: the error of the
prefix on the calibration tokens is only a sample of its error, and without a ridge directions
with little energy are corrected by noise (docs/LOG.md has figures).

What follows is any method on W' instead of W. With feedback on the same x the sum is exact: for
every Q, `sum |W x_full - Q x|^2 = sum |W' x - Q x|^2 + const` at r = 0, since the residual of the
regression is orthogonal to x. So GPTQ on W' rounds column by column against the full-precision
output; that is what Qronos does from its second column on, and what GPTAQ approximates.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import NumericalError


def corrector(
    gram: Float[Tensor, "in in"], residual: Float[Tensor, "in in"], ridge: float, *, name: str
) -> Float[Tensor, "in in"]:
    """`R (C + r I)^-1`, R = D - C the residual moment: W' = W + W times this. In float64 where
    float32 fails.

    Raises:
        NumericalError: C + r I is not positive definite; names the layer `name`.
    """
    shift = ridge * gram.diagonal().mean()
    for dtype in (gram.dtype, torch.float64):
        damped = gram.to(dtype, copy=True)
        damped.diagonal().add_(shift)
        lower, info = torch.linalg.cholesky_ex(damped)
        if info == 0:
            return torch.cholesky_solve(residual.T.to(dtype), lower).T.to(gram.dtype)
    raise NumericalError(
        f"{name}: the correction's matrix of shape {tuple(gram.shape)} is not positive definite "
        f"with a correction ridge of {ridge:g}; raise it, or calibrate on more text"
    )
