r"""The grid of ggml's blocks (block_types.py), chosen inside the format.

Step and minimum of each block have the least weighted error (block_search.py); where they are
products of a number of the super-block and a small one of the block, these are chosen together
(super_blocks.py). Everything but the codes is then frozen, as rounded in the file, and any method
rounds to it.

A weight counts with its input's energy, as in llama.cpp's importance matrix.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.block_types import BlockType
from q2n.errors import NumericalError
from q2n.grids.block_search import Blocks, least_error
from q2n.grids.super_blocks import two_levels
from q2n.layers.blocks import BlockLinear
from q2n.linalg.finite import all_finite

_ENTRIES_AT_ONCE = 2**22
"""Rows are fitted in portions of about this many weights, which bounds memory."""
_LEAST_IMPORTANCE = 0.01
"""Of the mean: a column without input is still rounded sensibly."""


def fit_blocks(
    kind: BlockType,
    weight: Float[Tensor, "out in"],
    energy: Float[Tensor, " in"] | None,
    name: str,
) -> BlockLinear:
    """The layer `name` with all codes 0: its grid. `energy` is the input's in every column, up to
    a factor; None: all alike. Rows must be whole super-blocks.

    Raises:
        NumericalError: weights that are not finite, or too large for float16.
    """
    if energy is None:
        energy = weight.new_ones(weight.shape[1])
    importance = (energy / energy.mean().clamp(min=1e-30)).clamp(min=_LEAST_IMPORTANCE)
    rows = max(1, _ENTRIES_AT_ONCE // weight.shape[1])
    parts = [_fit_rows(kind, part.float(), importance.float()) for part in weight.split(rows)]
    numbers: dict[str, Any] = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    if not all(all_finite(x) for x in (weight, *numbers.values())):
        raise NumericalError(
            f"{name}: its weight holds NaN or Inf, or more than the float16 scales of {kind.name} "
            "reach; use another format"
        )
    return BlockLinear(
        codes=torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device),
        **numbers,
        block_type=kind.name.lower(),  # type: ignore[arg-type] # a key of BLOCK_TYPES
        bits=kind.bits,
        scale_bits=kind.scale_bits,
    )


def _fit_rows(
    kind: BlockType, weight: Float[Tensor, "rows in"], importance: Float[Tensor, " in"]
) -> dict[str, Tensor]:
    """d, m, s, t of some rows, as far as the type has them."""
    levels = torch.tensor(kind.levels, dtype=weight.dtype, device=weight.device)
    omega = importance.expand_as(weight)
    cut = (-1, kind.block)
    blocks = Blocks(weight.reshape(cut), omega.reshape(cut), levels)
    step, minimum = least_error(
        blocks, has_minimum=kind.has_minimum, below_zero=kind.scale_bits is not None
    )
    shape = (len(weight), -1)
    if kind.scale_bits is None:
        simple = {"d": step.half().view(shape)}
        return simple | ({"m": minimum.half().view(shape)} if kind.has_minimum else {})
    found = two_levels(kind, blocks, step, minimum)
    return {key: value.view(shape) for key, value in found.items()}
