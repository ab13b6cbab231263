"""What a grid of ggml's blocks and the format gguf imply of each other, where the user says one."""

from collections.abc import Mapping
from typing import Any

from q2n.block_types import BLOCK_TYPES, BY_BITS
from q2n.config.options import Option
from q2n.errors import InputError

GGUF = "gguf"


def offers_blocks(options: Mapping[str, Option]) -> bool:
    """Whether a method with these options rounds to ggml's blocks."""
    return "grid" in options and BY_BITS[4] in options["grid"].kind.choices


def check_outside(settings: Mapping[str, Any]) -> None:
    """Refuse two types of embeddings and head.

    Raises:
        InputError: `outside_bits` and `gguf_outside` are both set, and differ.
    """
    bits, name = settings["outside_bits"], settings["gguf_outside"]
    if bits is not None and name not in (None, BY_BITS[bits]):
        raise InputError(
            f"outside_bits {bits} is gguf_outside {BY_BITS[bits]}, and gguf_outside is {name}: "
            "give one of them"
        )


def implied(settings: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """Settings that follow from those that are there. `options` are the method's: one without such
    grids gets none."""
    grid, bits = settings.get("grid"), settings.get("bits")
    if grid is None and settings.get("format") == GGUF:
        grid = BY_BITS.get(4 if bits is None else bits)
    if grid not in BLOCK_TYPES or not offers_blocks(options):
        return {}
    return {"grid": grid, "bits": BLOCK_TYPES[grid].bits, "format": GGUF}
