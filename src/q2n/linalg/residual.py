"""The residual moment `R = sum (x_full - x)^T x`, and that of a stream s beside the input,
`S = sum (s_full - s)^T x`, estimated from a part of the tokens.

Of a sequence, the first token and every so many of those after it count (`stride`); the latter are
scaled up to stand for all of them. R is small where both models agree, so that a part is enough.
The first token often has a massive activation (Sun et al. 2024) and is like no other, so it always
counts, by itself. Tokens that do not come as sequences all count.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.linalg.products import in_two_parts, product
from q2n.linalg.triangle import panels


def add_residual(
    total: Float[Tensor, "out in"],
    x: Float[Tensor, "tokens in"],
    own: Float[Tensor, "tokens out"],
    full: Float[Tensor, "tokens out"],
    stride: int,
) -> None:
    """Add `sum (full - own)^T x` of one sequence, in place.

    Args:
        x: as products.py takes a factor; of a half dtype on a GPU.
        own: what differs; x itself for R.
        full: the same in the full-precision model, in the dtype of the moment.
    """
    weight = None
    if stride > 1:
        sampled, weight = _sampled(len(x), stride)
        x, own, full = x[sampled], own[sampled], full[sampled]
    difference = full - own
    if weight is not None:
        difference *= weight.to(difference).unsqueeze(1)
    if x.dtype == torch.bfloat16:  # matrix units take the difference in two parts
        difference, x = torch.cat(in_two_parts(difference)), x.repeat(2, 1)
    x = x.to(difference.dtype)
    for i, j in panels(len(total)):
        total[i:j] += product(difference[:, i:j].T, x)


def require_channels(
    states: Float[Tensor, "..."] | None, x: Float[Tensor, "*batch in"], width: int
) -> Float[Tensor, "*batch width"]:
    """What differs, which must be there at the tokens of x.

    Raises:
        InputError: it is not, or has another width.
    """
    if states is None or states.shape != (*x.shape[:-1], width):
        shape = None if states is None else tuple(states.shape)
        raise InputError(
            f"a moment of {width} channels needs what both models have (x_full; s and s_full) at "
            f"the tokens of x, {tuple(x.shape)}; got {shape}"
        )
    return states


def _sampled(length: int, stride: int) -> tuple[list[int], Float[Tensor, " positions"]]:
    """Positions of a sequence that count, and how many tokens each stands for."""
    positions = [0, *range(1, length, stride)]
    weight = torch.full((len(positions),), (length - 1) / max(len(positions) - 1, 1))
    weight[0] = 1
    return positions, weight
