r"""EXL3's trellis code: 16-bit states that walk through a tile of 16 x 16 weights.

Letters: b bits per weight, 1 to 8; c_t the code of the t-th of the 256 weights of a tile, s_t its
state. A state is the last 16 bits of the codes so far, the newest lowest,

    s_t = (s_{t-1} 2^b + c_t) mod 2^16,      w_t = values[s_t],

and the walk is circular: c_255 comes before c_0. So any 256 codes are a tile, at b bits per weight.

The values are no table but a few instructions on s, in the arithmetic of float16 (bit for bit):

    3inst   x = 89226354 s + 64248484;   each half of x: keep sign and low 12 bits, xor 0x3b60;
            the sum of the two halves as float16
    mcg     the same without the sum's constant: x = 0xCBAC1FED s
    mul1    x = 0x83DCD12D s, S the sum of its 4 bytes; the float16 number 1024 + S, times 0x1eee
            plus 0xc931, rounded once: about (S - 510) / 147.7

Products are modulo 2^32. Either way the values are nearly those of a Gaussian.

Where the t-th weight stands in the tile (row: input, column: output) follows from the tensor cores
that multiply with it: for u = 0 .. 31 the weights 8 u .. 8 u + 7 are in rows r, r + 1, r + 8, r + 9
(r = 2 (u mod 4)) of column u div 4, then in these rows of column u div 4 + 8.

Sources, in turboderp-org/exllamav3: exllamav3_ext/quant/codebook.cuh (`decode_3inst`),
exllamav3_ext/quant/exl3_dq.cuh (states), modules/quant/exl3_lib/quantize.py (`tensor_core_perm`).
"""

from functools import cache
from typing import Literal

import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor

CodebookName = Literal["mul1", "mcg", "3inst"]
MULTIPLIERS: dict[CodebookName, int] = {"mul1": 0x83DCD12D, "mcg": 0xCBAC1FED, "3inst": 89226354}
TILE = 16
"""Inputs and outputs of a tile."""
WEIGHTS = TILE * TILE
STATE_BITS = 16


@cache
def values(codebook: CodebookName) -> Float[Tensor, " states"]:
    """The value of each state: a float16 number, as float32."""
    state = torch.arange(2**STATE_BITS)
    product = state * MULTIPLIERS[codebook]
    if codebook == "3inst":
        product += 64248484
    if codebook == "mul1":
        return _byte_sums(product)
    low, high = (_half(product >> shift) for shift in (0, 16))
    return (low + high).half().float()  # exact in float32: it is rounded once


def _byte_sums(product: Int[Tensor, " states"]) -> Float[Tensor, " states"]:
    total = torch.stack([(product >> shift) & 255 for shift in (0, 8, 16, 24)]).sum(0)
    factor, shift = _float16(0x1EEE), _float16(0xC931)
    return ((1024 + total) * factor + shift).half().float()  # the same


def _half(bits: Int[Tensor, " states"]) -> Float[Tensor, " states"]:
    mixed = ((bits & 0x8FFF) ^ 0x3B60).to(torch.int32)
    return mixed.to(torch.uint16).view(torch.float16).float()


def _float16(bits: int) -> float:
    """The number of these bits."""
    return float(torch.tensor([bits], dtype=torch.uint16).view(torch.float16))


@cache
def order() -> Int[Tensor, " weights"]:
    """The place (16 row + column) of each weight of the walk."""
    step = torch.arange(WEIGHTS)
    unit, within = step // 8, step % 8
    row = 2 * (unit % 4) + within % 2 + 8 * (within // 2 % 2)
    column = unit // 4 + 8 * (within // 4)
    return TILE * row + column


def states(codes: Integer[Tensor, "*tiles weights"], bits: int) -> Int[Tensor, "*tiles weights"]:
    """The state of each weight, in the order of the walk."""
    newest, state = codes.long(), torch.zeros(codes.shape, dtype=torch.int64, device=codes.device)
    for back in range(-(-STATE_BITS // bits)):
        state |= newest.roll(back, -1) << bits * back
    return state & (2**STATE_BITS - 1)


def to_tiles(matrix: Integer[Tensor, "in out"] | Float[Tensor, "in out"]) -> Tensor:
    """The tiles of a matrix, `[in / 16, out / 16, 256]`, each in the order of the walk."""
    rows, columns = matrix.shape
    tiles = matrix.reshape(rows // TILE, TILE, columns // TILE, TILE).transpose(1, 2)
    return tiles.flatten(2)[..., order().to(matrix.device)]


def from_tiles(tiles: Tensor) -> Tensor:
    """Inverse of `to_tiles`."""
    down, across, _ = tiles.shape
    placed = torch.empty_like(tiles)
    placed[..., order().to(tiles.device)] = tiles
    by_row = placed.view(down, across, TILE, TILE).transpose(1, 2)
    return by_row.reshape(down * TILE, across * TILE)


def decoded(
    codes: UInt8[Tensor, "in out"], bits: int, codebook: CodebookName
) -> Float[Tensor, "in out"]:
    """The weights of a matrix of codes, each code at the place of its weight."""
    state = states(to_tiles(codes), bits)
    return from_tiles(values(codebook).to(codes.device)[state])
