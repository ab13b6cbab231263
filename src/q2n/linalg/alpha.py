r"""The null-space step's factor alpha (Q2N): one number per row, in closed form.

Letters: `w` a row of the original weight, `q` of the quantized one, `e = w - q`; `U = [U2, U1]`
the eigenvectors of the input's Gram matrix as columns, U2 the principal ones (spectrum.py);
`P = U1 U1^T` the projector on the null space; `l` the ridge (the paper's lambda).

The input hardly reaches the directions of U1, so an error there costs little at the layer's output.
The paper moves all of the error there, `h = w - e P`, and asks for the factor that brings q, which
stays on its grid, closest to h, held near 1 (Eq 8):

    f(a) = |h - a q|^2 + l (a - 1)^2.

f is a parabola; f'(a) = 0 gives Eq 9, `a = (<q, h> + l) / (|q|^2 + l)`. Now
`h = q + e - e P = q + e U2 U2^T`, hence `<q, h> = |q|^2 + <e U2, q U2>` and

    a = 1 + <e U2, q U2> / (|q|^2 + l).

No m x m projector is formed, and what is small (a - 1) is computed on its own instead of as a
difference of numbers near 1. Consequences: q = w or an empty U2 gives 1; an empty U1 with l = 0
gives least squares between weights, `<q, w> / |q|^2`; q = 0 gives 1; rows are independent; the
units of the input do not matter, but l is a squared weight and holds small rows tighter.

Source: the Q2N paper, Eqs 7 to 9. (Eq 9 is printed with `W_q^T H`, an m x m matrix; its derivation
and its code mean these inner products of rows.)
"""

import torch
from jaxtyping import Float
from torch import Tensor

_ADAM_MEAN, _ADAM_SQUARE, _ADAM_EPS = 0.9, 0.999, 1e-8


def closed_form(
    overlap: Float[Tensor, " out"], norm: Float[Tensor, " out"], ridge: Float[Tensor, " out"]
) -> Float[Tensor, " out"]:
    """alpha of each row from `overlap` = <e U2, q U2>, `norm` = |q|^2 and the ridge, all in units
    of a squared weight. A row without weight and ridge (0 / 0) keeps alpha = 1."""
    denominator = norm + ridge
    return 1 + torch.where(denominator > 0, overlap / denominator, 0.0)


def adam(
    overlap: Float[Tensor, " out"],
    norm: Float[Tensor, " out"],
    ridge: Float[Tensor, " out"],
    *,
    steps: int = 20,
    rate: float = 2e-3,
) -> Float[Tensor, " out"]:
    """alpha after some full-batch Adam steps (Kingma and Ba 2015) from 1; 20 of rate 2e-3 in Q2N's
    released GPTQ. Other arguments as `closed_form`.

    `f'(a) = 2 (|q|^2 + l) (a - a*)` with a* the closed form, so the loss is never
    evaluated. Adam moves by at most about its rate per step: 20 steps leave alpha in [0.96, 1.04].
    """
    best = closed_form(overlap, norm, ridge)
    alpha, mean, square = torch.ones_like(best), torch.zeros_like(best), torch.zeros_like(best)
    for step in range(1, steps + 1):
        gradient = 2 * (norm + ridge) * (alpha - best)
        mean = _ADAM_MEAN * mean + (1 - _ADAM_MEAN) * gradient
        square = _ADAM_SQUARE * square + (1 - _ADAM_SQUARE) * gradient**2
        size = (square / (1 - _ADAM_SQUARE**step)).sqrt() + _ADAM_EPS
        alpha = alpha - rate * mean / (1 - _ADAM_MEAN**step) / size
    return alpha


def summary(factors: Float[Tensor, "*factors"]) -> dict[str, float]:
    """What a layer's record says of its factors: mean, min, max and standard deviation."""
    return {
        "mean": float(factors.mean()),
        "min": float(factors.min()),
        "max": float(factors.max()),
        "std": float(factors.std(correction=0)),
    }
