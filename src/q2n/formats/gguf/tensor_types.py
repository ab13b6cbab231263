"""How tensors lie in a GGUF file: rows of floating-point numbers or of ggml's blocks.

The numbers of the types are those of `enum ggml_type` (ggml/include/ggml.h of llama.cpp); gguf-py
0.19 has all of them but Q2_0, which is younger.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from q2n.block_types import BLOCK_TYPES, BlockType
from q2n.block_types import fitting as fitting_blocks
from q2n.formats.ggml_blocks import pack, unpack
from q2n.grids.fitted import block_grid
from q2n.models.model_source import require_finite


@dataclass(frozen=True)
class TensorType:
    """One type of rows."""

    name: str
    """As llama.cpp prints it."""
    number: int
    """In a file."""
    columns: int
    """Of a block; rows are whole blocks."""
    bytes: int
    """Of a block."""

    @property
    def bits_per_weight(self) -> float:
        """Everything counted."""
        return 8 * self.bytes / self.columns

    def row_bytes(self, columns: int) -> int:
        """Of a row of so many columns."""
        return columns // self.columns * self.bytes

    def size_bytes(self, shape: tuple[int, ...]) -> int:
        """Of a tensor."""
        return prod(shape[:-1]) * self.row_bytes(shape[-1])


F32 = TensorType("F32", 0, 1, 4)
F16 = TensorType("F16", 1, 1, 2)
BF16 = TensorType("BF16", 30, 1, 2)
FLOATS = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}

TENSOR_TYPES: Mapping[str, TensorType] = {
    kind.name.lower(): kind
    for kind in (
        *FLOATS,
        *(TensorType(x.name, x.number, x.super_block, x.bytes) for x in BLOCK_TYPES.values()),
    )
}
"""By the names that options have for them."""
_ENTRIES_AT_ONCE = 2**22
BY_NUMBER = {kind.number: kind for kind in TENSOR_TYPES.values()}


def fitting(name: str, columns: int, plain: TensorType) -> TensorType:
    """The type of that name for rows of so many columns; where these are not whole blocks, the
    type that it falls back on, at last `plain`."""
    if name not in BLOCK_TYPES:
        return TENSOR_TYPES[name]
    kind = fitting_blocks(name, columns)
    return plain if kind is None else TENSOR_TYPES[kind.name.lower()]


def notes_of_age(names: Iterable[str]) -> list[str]:
    """What to say of types that not every llama.cpp knows."""
    kinds = [BLOCK_TYPES[name] for name in dict.fromkeys(names) if name in BLOCK_TYPES]
    return [
        f"llama.cpp reads {kind.name} since its build {kind.since}; older ones, and programs built "
        "on them, refuse the file"
        for kind in kinds
        if kind.since
    ]


def encode(weight: Float[Tensor, "..."], kind: TensorType, name: str) -> UInt8[Tensor, "..."]:
    """The bytes of a tensor's rows. In blocks it is rounded to their nearest levels, steps and
    minima chosen for the least error.

    Raises:
        NumericalError: its numbers have no place in the type.
    """
    if kind in FLOATS:
        plain = weight.to(FLOATS[kind]).contiguous()
        require_finite(f"tensor {name!r}", plain)
        return plain.view(torch.uint8)
    portions = weight.split(_rows_at_once(weight.shape))
    return torch.cat([_in_blocks(part, BLOCK_TYPES[kind.name.lower()], name) for part in portions])


def decode(
    data: UInt8[Tensor, " bytes"], kind: TensorType, shape: tuple[int, ...]
) -> Float[Tensor, "..."]:
    """A tensor of any type in float32."""
    if kind in FLOATS:
        return data.view(FLOATS[kind]).float().reshape(shape)
    rows = data.view(-1, kind.row_bytes(shape[-1]))
    block_type = BLOCK_TYPES[kind.name.lower()]
    portions = rows.split(_rows_at_once(shape))
    return torch.cat([unpack(part, block_type).dequantize() for part in portions]).reshape(shape)


def _in_blocks(rows: Float[Tensor, "out in"], kind: BlockType, name: str) -> UInt8[Tensor, "out _"]:
    return pack(block_grid(kind, rows.float(), None, name).nearest())


def _rows_at_once(shape: tuple[int, ...]) -> int:
    """Rows that are worked on together: what that takes is a small part of a large tensor."""
    return max(1, _ENTRIES_AT_ONCE // shape[-1])
