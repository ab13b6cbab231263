r"""Gradient steps that stay on the orthogonal matrices: Cayley SGD (Li et al. 2020), as SpinQuant
(Liu et al. 2024) takes them.

Letters: `Q` an orthogonal matrix [n, n], `G` the gradient of a loss in its entries, `W` a skew
matrix, `a` the length of the step. A skew W turns Q without leaving the orthogonal matrices:

    Q_next = (I - a/2 W)^-1 (I + a/2 W) Q,      W = V - V^T,    V = -(G Q^T - 1/2 Q Q^T G Q^T)

which solves Y = Q + a/2 W (Q + Y). Five rounds of that equation, from Y = Q - a G, stand for the
inverse; with a <= 1 / ||W||_1 each of them at least halves what is missing. What is still missing
adds up from step to step, so that Q is brought back from time to time (`retracted`).

A step turns Q from the left, whatever Q is: steps of Q and of Q R, R a fixed orthogonal matrix, are
the same turns.
"""

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDS = 5
_TINY = 1e-8


def cayley_step(
    q: Float[Tensor, "*batch n n"], gradient: Float[Tensor, "*batch n n"], rate: float
) -> Float[Tensor, "*batch n n"]:
    """Q after one step down the gradient, no longer than `rate` and 1 / ||W||_1."""
    q = q / q.norm(dim=-2, keepdim=True)
    turn = gradient @ q.mT
    half = 0.5 * q @ (q.mT @ turn) - turn
    skew = half - half.mT
    largest = skew.abs().sum(-2).amax(-1)[..., None, None]
    length = (1 / (largest + _TINY)).clamp(max=rate)
    found = q - length * gradient
    for _ in range(ROUNDS):
        found = q + length / 2 * (skew @ (q + found))
    return found


def retracted(q: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """An orthogonal matrix near one that is nearly so: the Q of its QR decomposition with a
    positive diagonal of R, in float64, rounded once."""
    orthogonal, triangle = torch.linalg.qr(q.double())
    signs = triangle.diagonal(dim1=-2, dim2=-1).sign()
    return (orthogonal * signs[..., None, :]).to(q.dtype).contiguous()
