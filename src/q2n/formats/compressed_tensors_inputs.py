"""How compressed-tensors says that linears round their inputs: 8 bits, one scale for each token.

Its readers fit the grid to the largest number of each token, `m`, and do not agree on the step:
vLLM takes m / 127, as a `TokenGrid` without clipping does (`scaled_int8_quant`), and
compressed-tensors itself, in transformers, 2 m / 255 (`calculate_qparams`), so that a number of
+m is rounded to 127 / 127.5 of it.
"""

from collections.abc import Mapping
from typing import Any, Final

from q2n.errors import InputError
from q2n.grids.per_token import TokenGrid
from q2n.layers.uniform import UniformStorage
from q2n.option_types import shown

PER_TOKEN: Final = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "token",
    "dynamic": True,
}
"""`input_activations` of a group."""
GRID = TokenGrid(bits=8)
"""The same for our own reader."""


def require_inputs(storage: UniformStorage, grid: TokenGrid) -> None:
    """Refuse what readers do not run.

    Raises:
        InputError: with the reason, and what would do.
    """
    reason = None
    if grid.bits != GRID.bits:
        reason = f"{grid.bits} bits of the inputs; set activation_bits to {GRID.bits}"
    elif not grid.symmetric:
        reason = "asymmetric grids of the inputs; leave activation_symmetric out"
    elif grid.group_size != -1:
        reason = f"groups of {grid.group_size} inputs; leave activation_group_size out"
    elif grid.clip != 1:
        reason = f"inputs cut to {grid.clip} of their range; set activation_clip_ratio to 1"
    elif storage.bits not in (4, 8):
        reason = f"weights of {storage.bits} bits with rounded inputs; set bits to 4 or 8"
    elif not storage.symmetric:
        reason = "asymmetric weights with rounded inputs; add --symmetric"
    elif storage.bits == 8 and storage.group_size != -1:
        reason = f"8-bit weights in groups of {storage.group_size}; set group_size to -1"
    if reason is not None:
        raise InputError(
            f"readers of compressed-tensors do not run {reason}, or use --format native"
        )


def described_inputs(described: Any) -> TokenGrid | None:
    """How a group's linears round their inputs; None: not at all.

    Args:
        described: `input_activations` of the group.

    Raises:
        InputError: in another way than is known here.
    """
    if described is None:
        return None
    known = isinstance(described, Mapping) and PER_TOKEN.items() <= described.items()
    if not known or described.get("group_size") is not None:
        raise InputError(
            f"the inputs of this group are rounded to {shown(described)}, which is not read here; "
            "load it with transformers"
        )
    return GRID
