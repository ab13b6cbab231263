r"""The levels with the least error on Gaussian weights: Lloyd-Max quantizer (Lloyd 1982, Max 1960).

Of all sets of 2^b levels, b the bits, this one has the least expected squared error on a normal
weight: each level is the mean of what is rounded to it, each border lies midway between two levels.
Levels are closer where weights are more likely. Compared with the best evenly spaced levels
(layers/centred.py) the error falls by 1 % at 2 bits, 8 % at 3 and 18 % at 4, and nothing more is
stored. The price is a look-up where the even grid has a product.

How the levels are computed: Lloyd's iteration on the positive ones, the others being their
negatives. With phi the density and Phi the distribution function of the normal distribution, the
mean of what lies between two borders lower < upper is

    (phi(lower) - phi(upper)) / (Phi(upper) - Phi(lower)).

It starts where many levels have their optimum, as dense as phi^(1/3) (Panter and Dite 1951): at
quantiles of a normal distribution of variance 3.
"""

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDS = 1000
"""Of Lloyd's iteration: at 8 bits the expected error is then 0.01 % above the least."""


@cache
def levels(bits: int) -> Float[Tensor, " entries"]:
    """The 2^bits levels for weights with a root mean square of 1, ascending, in float64."""
    n = 2 ** (bits - 1)
    above = 3**0.5 * torch.special.ndtri(0.5 + (torch.arange(n).double() + 0.5) / (2 * n))
    ends = torch.tensor([0.0, math.inf], dtype=torch.float64)
    for _ in range(_ROUNDS):
        borders = torch.cat([ends[:1], (above[1:] + above[:-1]) / 2, ends[1:]])
        density = torch.exp(-borders.square() / 2) / math.sqrt(2 * math.pi)
        above = density.diff() / torch.special.ndtr(-borders).diff()
    return torch.cat([-above.flip(0), above])


def outermost(bits: int) -> float:
    """The largest level, in units of the weights' root mean square."""
    return float(levels(bits)[-1])
