"""Embeddings and output head in few bits: on which grid.

These are tables that hold a row for each word. The columns of a row are cut into groups of 64, with
4 bits of 32 (of fewer where that does not divide them; else they are one group), each with a step
and a zero point. Chosen on the validation text of WikiText-2 (docs/LOG.md): at 4 bits groups of 32
take two fifths off what groups of 64 cost, at 6 and 8 bits next to nothing.

With 8 bits the zero point is the middle: MLX rounds the product of a step and a zero point of 8
bits by up to half a step in bfloat16, and the middle, a power of two, not at all.
"""

from dataclasses import dataclass

WIDTHS = (4, 6, 8)
"""Bits that are offered."""
_GROUPS = {4: (32, 16), 6: (64, 32, 16), 8: (64, 32, 16)}


@dataclass(frozen=True)
class TableGrid:
    """The grid of a model's tables."""

    bits: int

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is the middle, and not stored."""
        return self.bits == 8

    def group_size(self, columns: int) -> int:
        """Columns of a row that share a step."""
        return next((size for size in _GROUPS[self.bits] if columns % size == 0), columns)

    def bits_of(self, words: int, width: int, bits_of_group: int) -> int:
        """Bits of a table whose groups share numbers of so many bits."""
        groups = width // self.group_size(width)
        return words * (width * self.bits + groups * bits_of_group)
