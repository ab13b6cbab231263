r"""Trellis codes: a weight's value depends on its own code and on those before it.

Rounded one by one to 2 bits, Gaussian weights keep an error of 0.118 of their energy; the least
that any code of 2 bits per weight can reach is 2^-4 = 0.063 (the rate-distortion bound). Trellis
codes (Marcellin and Fischer 1990; for language models QTIP, Tseng et al. 2024) come near it with a
look-up.

Letters: b bits, `B = 2^b`; c_i the code of row i of a column, s_i its state; d the codes on which a
value depends.

    s_i = c_i B^(d-1) + c_{i-1} B^(d-2) + .. + c_{i-d+1},     w_i ~ scale * values[s_i].

Each of the B^d values can be reached by some sequence of codes, at b bits per weight. The nearest
sequence is found by dynamic programming (kernels/trellis_search.py). Sequences run down a column,
because feedback (kernels/column_sweep.py) needs a whole column at once. A column is cut into
circular segments: the last row of a segment counts as the one above its first. So no start has to
be stored.

The values are the quantiles of a Gaussian. Which state has which one matters: the B states that may
come next differ in the newest code, the B states that may have come before in the oldest one. In
both sets every B-th part of the Gaussian shall appear once, so that no choice is between similar
values: the part is newest xor oldest xor a random number that depends on the codes between. Within
the parts the order is random. Error over energy on 150 000 Gaussian weights, with Lloyd-Max levels
and values in wholly random order for comparison (benchmarks/trellis.py):

    bits   Lloyd-Max   random    here    bound
      2       0.1182   0.0733   0.0705   0.0625
      3       0.0348   0.0196   0.0184   0.0156
      4       0.0095   0.0053   0.0048   0.0039
"""

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int16, UInt8
from torch import Tensor

DIGITS = {2: 6, 3: 4, 4: 3}
"""d by bits: states of 12 bits. Their 4096 values still lie in a processor's nearest cache."""
_LONGEST_SEGMENT = 160


@cache
def values(bits: int) -> Float[Tensor, " states"]:
    """The value of each state, for weights with a root mean square of 1."""
    base, states = 2**bits, 2 ** (bits * DIGITS[bits])
    random = np.random.RandomState(0)  # its streams are frozen: a checkpoint depends on this one
    between = random.randint(base, size=states // base**2)
    state = np.arange(states)
    part = state // (states // base) ^ state % base ^ between[state // base % len(between)]
    order = np.lexsort((random.permutation(states), part))
    quantile = np.empty(states)
    quantile[order] = (state + 0.5) / states
    return torch.special.ndtri(torch.from_numpy(quantile)).float()


def borders(rows: int) -> list[int]:
    """The first row of each segment, and the number of rows. Segments are nearly equal and have at
    most 160 rows."""
    count = -(-rows // _LONGEST_SEGMENT)
    return [i * rows // count for i in range(count + 1)]


def states(codes: UInt8[Tensor, "out in"], bits: int) -> Int16[Tensor, "out in"]:
    """The state of each weight."""
    ends = borders(len(codes))
    segments = [codes[low:high] for low, high in zip(ends, ends[1:], strict=False)]
    return torch.cat([segment_states(segment, bits) for segment in segments])


def segment_states(codes: UInt8[Tensor, "rows in"], bits: int) -> Int16[Tensor, "rows in"]:
    """The state of each weight of one circular segment."""
    state = torch.zeros(codes.shape, dtype=torch.int16, device=codes.device)
    for place in reversed(range(DIGITS[bits])):
        state += codes.to(torch.int16) << bits * place
        codes = codes.roll(1, 0)
    return state
