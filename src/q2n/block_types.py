"""ggml's block types: the grids that GGUF files hold, and llama.cpp computes with.

A row is cut into blocks of 16 to 64 columns that share a step, and those into super-blocks that
share one or two numbers of 16 bits, `d` and `m`:

    simple types       w = d l(code) [+ m]                       a block is a super-block
    K types, IQ4_XS    w = d (s - s_0) l(code) [- m t]           s, t: small whole numbers per block

`l(code)` is `code - offset`, or for IQ4 an entry of a table of uneven levels. FORMATS: llama.cpp,
ggml/src/ggml-common.h and `dequantize_row_*` in ggml/src/ggml-quants.c.
"""

from dataclasses import dataclass
from typing import Literal

BlockTypeName = Literal[
    "q2_0",
    "q2_k",
    "q3_k",
    "q4_0",
    "q4_1",
    "q4_k",
    "iq4_nl",
    "iq4_xs",
    "q5_0",
    "q5_1",
    "q5_k",
    "q6_k",
    "q8_0",
]
"""As an option calls them."""
OutsideName = Literal["f32", "f16", "bf16", BlockTypeName]
"""What else a GGUF file may hold weights in, and blocks."""

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True, kw_only=True)
class BlockType:
    """One type of block."""

    name: str
    """As llama.cpp prints it."""
    number: int
    """In a GGUF file."""
    bits: int
    """Of a code."""
    block: int
    """Columns that share a step."""
    super_block: int
    """Columns that share d and m; rows are whole super-blocks."""
    offset: int = 0
    """Of the codes: a code stands for the level `code - offset`."""
    table: tuple[int, ...] = ()
    """Levels by code, where they are uneven."""
    has_minimum: bool = False
    """Whether there is an m."""
    scale_bits: int | None = None
    """Of s and of t; None in a simple type."""
    scale_offset: int = 0
    """s_0."""
    fallback: str | None = None
    """The type (an option's name) of rows that are not whole super-blocks."""
    since: int = 0
    """The build of llama.cpp from which on it is read; 0: all that read GGUF files."""

    @property
    def levels(self) -> tuple[int, ...]:
        """l of every code."""
        return self.table or tuple(code - self.offset for code in range(2**self.bits))

    @property
    def bytes(self) -> int:
        """Of a super-block."""
        numbers = 2 if self.has_minimum else 1
        scales = (self.scale_bits or 0) * numbers * (self.super_block // self.block)
        return (self.bits * self.super_block + 16 * numbers + scales) // 8

    @property
    def bits_per_weight(self) -> float:
        """Everything counted."""
        return 8 * self.bytes / self.super_block


BLOCK_TYPES: dict[str, BlockType] = {
    kind.name.lower(): kind
    for kind in (
        BlockType(name="Q2_0", number=42, bits=2, block=64, super_block=64, offset=1, since=10068),
        BlockType(
            name="Q2_K",
            number=10,
            bits=2,
            block=16,
            super_block=256,
            has_minimum=True,
            scale_bits=4,
            fallback="q2_0",
        ),
        BlockType(
            name="Q3_K",
            number=11,
            bits=3,
            block=16,
            super_block=256,
            offset=4,
            scale_bits=6,
            scale_offset=32,
            fallback="iq4_nl",
        ),
        BlockType(name="Q4_0", number=2, bits=4, block=32, super_block=32, offset=8),
        BlockType(name="Q4_1", number=3, bits=4, block=32, super_block=32, has_minimum=True),
        BlockType(
            name="Q4_K",
            number=12,
            bits=4,
            block=32,
            super_block=256,
            has_minimum=True,
            scale_bits=6,
            fallback="iq4_nl",
        ),
        BlockType(name="IQ4_NL", number=20, bits=4, block=32, super_block=32, table=_IQ4),
        BlockType(
            name="IQ4_XS",
            number=23,
            bits=4,
            block=32,
            super_block=256,
            table=_IQ4,
            scale_bits=6,
            scale_offset=32,
            fallback="iq4_nl",
        ),
        BlockType(name="Q5_0", number=6, bits=5, block=32, super_block=32, offset=16),
        BlockType(name="Q5_1", number=7, bits=5, block=32, super_block=32, has_minimum=True),
        BlockType(
            name="Q5_K",
            number=13,
            bits=5,
            block=32,
            super_block=256,
            has_minimum=True,
            scale_bits=6,
            fallback="q5_0",
        ),
        BlockType(
            name="Q6_K",
            number=14,
            bits=6,
            block=16,
            super_block=256,
            offset=32,
            scale_bits=8,
            scale_offset=128,
            fallback="q8_0",
        ),
        BlockType(name="Q8_0", number=8, bits=8, block=32, super_block=32, offset=128),
    )
}
"""By the name of the option. Those of 256 columns fall back as llama.cpp's own quantizer does, but
to a type of the same bits where there is one."""


BY_BITS = {2: "q2_k", 3: "q3_k", 4: "iq4_nl", 5: "q5_k", 6: "q6_k", 8: "q8_0"}
"""The type that is meant where only bits are said."""


def fitting(name: str, columns: int) -> BlockType | None:
    """The type of that name, or the one that it falls back on for rows of so many columns; None
    if these do not fit either."""
    kind: BlockType | None = BLOCK_TYPES[name]
    while kind is not None and columns % kind.super_block:
        kind = BLOCK_TYPES[kind.fallback] if kind.fallback else None
    return kind
