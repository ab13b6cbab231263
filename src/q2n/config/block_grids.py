"""What a grid of ggml's blocks and the format gguf imply of each other, where the user says one."""

from collections.abc import Mapping
from typing import Any

from q2n.block_types import BLOCK_TYPES
from q2n.config.options import Option

GGUF = "gguf"
BY_BITS = {2: "q2_k", 3: "q3_k", 4: "iq4_nl", 5: "q5_k", 6: "q6_k", 8: "q8_0"}
"""The grid that `--format gguf` means, by bits."""


def offers_blocks(options: Mapping[str, Option]) -> bool:
    """Whether a method with these options rounds to ggml's blocks."""
    return "grid" in options and BY_BITS[4] in options["grid"].kind.choices


def implied(settings: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """Settings that follow from those that are there. `options` are the method's: one without such
    grids gets none."""
    grid, bits = settings.get("grid"), settings.get("bits")
    if grid is None and settings.get("format") == GGUF:
        grid = BY_BITS.get(4 if bits is None else bits)
    if grid not in BLOCK_TYPES or not offers_blocks(options):
        return {}
    return {"grid": grid, "bits": BLOCK_TYPES[grid].bits, "format": GGUF}
