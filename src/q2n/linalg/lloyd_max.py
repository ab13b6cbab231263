r"""The levels that serve Gaussian weights best: the Lloyd-Max quantizer (Lloyd 1982, Max 1960).

Of all sets of 2^b levels this one has the least expected square error on a normal weight: every
level is the mean of what is rounded to it, every border lies midway between two levels. Levels lie
closer where weights are more likely. Against the best even levels (centred.py) the error falls by
1 % at 2 bits, 8 % at 3 and 18 % at 4, for no bits at all: what is stored is the same. The price is
a look-up where the even grid has a product.
"""

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDS = 1000
"""Of Lloyd's iteration; at 8 bits the expected error is then 0.01 % above the least."""


@cache
def levels(bits: int) -> Float[Tensor, " entries"]:
    """The 2^bits levels for weights with a root mean square of 1, ascending, in float64.

    Lloyd's iteration on those above 0, the others are their negatives. It starts where many
    levels have their optimum, as dense as the cube root of the weights (Panter and Dite 1951).
    With a border on either side of a level the mean between them is

        (density(lower) - density(upper)) / (Phi(upper) - Phi(lower)).
    """
    n = 2 ** (bits - 1)
    above = 3**0.5 * torch.special.ndtri(0.5 + (torch.arange(n).double() + 0.5) / (2 * n))
    ends = torch.tensor([0.0, math.inf], dtype=torch.float64)
    for _ in range(_ROUNDS):
        borders = torch.cat([ends[:1], (above[1:] + above[:-1]) / 2, ends[1:]])
        density = torch.exp(-borders.square() / 2) / math.sqrt(2 * math.pi)
        above = density.diff() / torch.special.ndtr(-borders).diff()
    return torch.cat([-above.flip(0), above])


def outermost(bits: int) -> float:
    """The outermost level."""
    return float(levels(bits)[-1])
