r"""Rounding tiles to EXL3's trellis code on a GPU, in Triton: the search of exl3_search.py.

A program has one tile. Its distances before and after a weight lie in global memory, and so do the
symbols k that led to each edge, by which it finds its way back.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt8
from torch import Tensor

from q2n.linalg.exl3_code import WEIGHTS

_STATES_AT_ONCE = 8192
_TILES_AT_ONCE = 256
"""Symbols take 2^(24 - bits) bytes per tile: 1 GB at 2 bits."""


def nearest_codes(
    tiles: Float[Tensor, "tiles 256"], values: Float[Tensor, "states"], bits: int
) -> UInt8[Tensor, "tiles 256"]:
    """As `exl3_search.nearest_codes_reference`, in float32."""
    edges, at_once = len(values) >> bits, min(len(tiles), _TILES_AT_ONCE)
    cost = torch.empty(at_once, 2, edges, device=tiles.device)
    symbols = torch.empty(at_once, WEIGHTS, edges, dtype=torch.uint8, device=tiles.device)
    codes = torch.empty(tiles.shape, dtype=torch.uint8, device=tiles.device)
    tiles, values = tiles.float().contiguous(), values.float().contiguous()
    for first in range(0, len(tiles), _TILES_AT_ONCE):
        part = tiles[first : first + _TILES_AT_ONCE]
        _kernel[(len(part),)](
            *(part, values, cost, symbols, codes[first : first + _TILES_AT_ONCE]),
            BITS=bits,
            EDGES=edges,
            BLOCK=_STATES_AT_ONCE >> bits,
            WEIGHTS=WEIGHTS,
        )
    return codes


@triton.jit
@no_type_check
def _kernel(
    tiles,
    values,
    cost,
    symbols,
    codes,
    BITS: tl.constexpr,
    EDGES: tl.constexpr,
    BLOCK: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    tile, cost = tiles + number * WEIGHTS, cost + number * 2 * EDGES
    symbols, codes = symbols + number * WEIGHTS * EDGES, codes + number * WEIGHTS
    half: tl.constexpr = WEIGHTS // 2
    _start(cost, -1, EDGES, BLOCK)
    _forward(tile, values, cost, symbols, half, BITS, EDGES, BLOCK, WEIGHTS)
    edge = _nearest_edge(cost, EDGES, BLOCK)
    for back in range(half):
        symbol = tl.load(symbols + (WEIGHTS - 1 - back) * EDGES + edge).to(tl.int32)
        edge = (symbol * EDGES + edge) >> BITS
    tl.debug_barrier()
    _start(cost, edge, EDGES, BLOCK)
    _forward(tile, values, cost, symbols, 0, BITS, EDGES, BLOCK, WEIGHTS)
    for back in range(WEIGHTS):
        step = WEIGHTS - 1 - back
        symbol = tl.load(symbols + step * EDGES + edge).to(tl.int32)
        state = symbol * EDGES + edge
        tl.store(codes + step, (state & ((1 << BITS) - 1)).to(tl.uint8))
        edge = state >> BITS


@triton.jit
@no_type_check
def _start(cost, start, EDGES: tl.constexpr, BLOCK: tl.constexpr):
    """No distance at the edge `start` and infinity elsewhere; none at all where it is -1."""
    for first in range(0, EDGES, BLOCK):
        edge = first + tl.arange(0, BLOCK)
        away = tl.where((edge == start) | (start == -1), 0.0, float("inf"))
        tl.store(cost + edge, away)
    tl.debug_barrier()


@triton.jit
@no_type_check
def _forward(
    tile,
    values,
    cost,
    symbols,
    shift,
    BITS: tl.constexpr,
    EDGES: tl.constexpr,
    BLOCK: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    """All weights, from the one at `shift` on."""
    symbol = tl.arange(0, 1 << BITS)[:, None]
    for t in range(WEIGHTS):
        x = tl.load(tile + (t + shift) % WEIGHTS)
        before, after = cost + t % 2 * EDGES, cost + (t + 1) % 2 * EDGES
        for first in range(0, EDGES, BLOCK):
            edge = first + tl.arange(0, BLOCK)
            state = symbol * EDGES + edge[None, :]
            away = x - tl.load(values + state)
            total = tl.load(before + (state >> BITS)) + away * away
            least, nearest = tl.min(total, 0, return_indices=True)
            tl.store(after + edge, least)
            tl.store(symbols + t * EDGES + edge, nearest.to(tl.uint8))
        tl.debug_barrier()  # what other threads have stored is read next


@triton.jit
@no_type_check
def _nearest_edge(cost, EDGES: tl.constexpr, BLOCK: tl.constexpr):
    """After an even number of weights."""
    least, nearest = float("inf"), 0
    for first in range(0, EDGES, BLOCK):
        away = tl.load(cost + first + tl.arange(0, BLOCK))
        lowest = tl.min(away, 0)
        nearest = tl.where(lowest < least, first + tl.argmin(away, 0), nearest)
        least = tl.minimum(lowest, least)
    return nearest
