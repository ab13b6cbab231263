"""How tensors lie in a GGUF file: rows of floating-point numbers or of ggml's blocks.

The numbers of the types are those of `enum ggml_type` (ggml/include/ggml.h of llama.cpp); gguf-py
0.19 has all of them but Q2_0, which is younger.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import get_args

import numpy as np
import torch
from gguf import GGMLQuantizationType, QuantError, quants
from jaxtyping import Float, UInt8
from torch import Tensor

from q2n.block_types import BLOCK_TYPES, OutsideName


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
BY_NUMBER = {kind.number: kind for kind in TENSOR_TYPES.values()}
OUTSIDE = get_args(OutsideName)


def fitting(kind: TensorType, columns: int, other: TensorType) -> TensorType:
    """`kind`, or `other` for rows that are not whole blocks of it."""
    return other if columns % kind.columns else kind


def encode(weight: Float[Tensor, "*shape"], kind: TensorType) -> UInt8[np.ndarray, "*rows bytes"]:
    """A tensor in a type of `OUTSIDE`. The rows of the block types are rounded as llama.cpp rounds
    them without an importance matrix."""
    if kind in FLOATS:
        return weight.to(FLOATS[kind]).contiguous().view(torch.uint8).numpy()
    return quants.quantize(weight.float().numpy(), GGMLQuantizationType(kind.number))


def decode(
    data: UInt8[np.ndarray, " bytes"], kind: TensorType, shape: tuple[int, ...]
) -> Float[Tensor, "..."]:
    """A tensor of any type in float32.

    Raises:
        QuantError: gguf-py does not know the type.
    """
    if kind in FLOATS:
        flat = torch.from_numpy(data.copy()).view(FLOATS[kind]).float()
    elif kind.name == "Q2_0":
        flat = torch.from_numpy(_q2_0(data))
    else:
        flat = torch.from_numpy(_dequantized(data, kind))
    return flat.reshape(shape)


def _dequantized(data: np.ndarray, kind: TensorType) -> np.ndarray:
    try:
        return quants.dequantize(data.reshape(-1, kind.bytes), GGMLQuantizationType(kind.number))
    except NotImplementedError as cause:
        raise QuantError(str(cause)) from cause


def _q2_0(data: np.ndarray) -> np.ndarray:
    """Blocks of 64: d in float16, then four codes a byte, the first in the lowest bits;
    d (code - 1)."""
    blocks = data.reshape(-1, 18)
    codes = blocks[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return d * (codes.reshape(-1, 64).astype(np.float32) - 1)
