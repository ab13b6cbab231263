r"""Rounding tiles to EXL3's trellis code (linalg/exl3_code.py): the Viterbi algorithm.

Letters: b bits, `B = 2^b`; an edge is what two neighbouring states share, `E = 2^(16 - b)` of them:
the low 16 - b bits of the one are the high bits of the next. So state s leads from edge `s // B` to
edge `s mod E`, and B states lead to each. Let best_t[e] be the least squared distance between the
first t weights and a walk that ends in edge e. Then one more weight x gives

    best_{t+1}[e] = min_k best_t[(k E + e) // B] + (x - values[k E + e])^2,     k = 0 .. B - 1.

From the last edge the walk is traced back by the same comparison. 65 536 values per weight,
whatever b.

The walk is circular: it must begin at the edge where it ends. That edge is found beforehand by a
walk with free ends over the second half of the tile and then the first: what it crosses in the
middle (as exllamav3's quantize_tiles_kernel.cuh does it). Given that edge, the codes are the
nearest. Distances are summed in the dtype of the tiles, float32; exllamav3 sums them in float16.
"""

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from q2n.kernels.compiled import compiled
from q2n.kernels.numba_threads import follow_torch
from q2n.kernels.optional import has_triton
from q2n.linalg.exl3_code import WEIGHTS

_HALF = WEIGHTS // 2


def nearest_codes_reference(
    tiles: Float[Tensor, "tiles 256"], values: Float[Tensor, "states"], bits: int
) -> UInt8[Tensor, "tiles 256"]:
    """Codes of the circular walk nearest to each tile, its weights in the order of the walk.
    `values` has that of each state, in the dtype of the tiles; where walks are equally near, the
    smallest state is taken."""
    found = [_nearest(tile, values, bits) for tile in tiles]
    empty = torch.empty(0, WEIGHTS, dtype=torch.int64, device=tiles.device)
    states = torch.stack(found) if found else empty
    return (states % 2**bits).to(torch.uint8)


def _nearest(
    tile: Float[Tensor, "256"], values: Float[Tensor, "states"], bits: int
) -> Int[Tensor, "256"]:
    around = _walk(tile.roll(_HALF), values, bits, None)
    return _walk(tile, values, bits, int(around[_HALF]) >> bits)


def _walk(
    tile: Float[Tensor, "256"], values: Float[Tensor, "states"], bits: int, edge: int | None
) -> Int[Tensor, "256"]:
    """The states of the walk nearest to the tile, from `edge` to `edge`, or with free ends."""
    edges = len(values) >> bits
    start = tile.new_zeros(edges)
    if edge is not None:
        start.fill_(torch.inf)[edge] = 0
    best = [start]
    for x in tile:
        total = best[-1].repeat_interleave(2**bits) + (x - values).square()
        best.append(total.view(-1, edges).amin(0))
    edge = int(best[-1].argmin()) if edge is None else edge
    path = []
    for x, before in zip(reversed(tile), reversed(best[:-1]), strict=True):
        into = torch.arange(edge, len(values), edges, device=tile.device)
        total = before[into >> bits] + (x - values[into]).square()
        path.append(into[total.argmin()])  # the first of equal ones
        edge = int(path[-1]) >> bits
    return torch.stack(path[::-1])


def nearest_codes_numba(
    tiles: Float[Tensor, "tiles 256"], values: Float[Tensor, "states"], bits: int
) -> UInt8[Tensor, "tiles 256"]:
    """As `nearest_codes_reference`, on a CPU, tiles in parallel."""
    codes = torch.empty(tiles.shape, dtype=torch.uint8)
    workers = min(len(tiles), follow_torch())
    if workers:
        _kernel(tiles.contiguous().numpy(), values.numpy(), bits, workers, codes.numpy())
    return codes


def nearest_codes_triton(
    tiles: Float[Tensor, "tiles 256"], values: Float[Tensor, "states"], bits: int
) -> UInt8[Tensor, "tiles 256"]:
    """As `nearest_codes_reference`, on a GPU: in Triton where it is installed."""
    if not has_triton():
        return nearest_codes_reference(tiles, values, bits)
    from q2n.kernels import exl3_triton  # needs triton

    return exl3_triton.nearest_codes(tiles, values, bits)


@compiled(parallel=True)
@no_type_check
def _kernel(tiles, values, bits, workers, codes):
    """Fill `codes`."""
    edges = len(values) >> bits
    for worker in numba.prange(workers):
        best = np.empty((WEIGHTS + 1, edges), values.dtype)
        wide = np.empty(len(values), values.dtype)
        for i in range(worker, len(tiles), workers):
            _nearest_numba(tiles[i], values, bits, best, wide, codes[i])


@compiled()
@no_type_check
def _nearest_numba(tile, values, bits, best, wide, codes):
    around = np.concatenate((tile[_HALF:], tile[:_HALF]))
    best[0] = 0
    _forward(around, values, bits, best, wide)
    edge = np.argmin(best[WEIGHTS])
    for t in range(WEIGHTS - 1, _HALF - 1, -1):
        edge = _state_into(edge, around[t], values, bits, best[t]) >> bits
    best[0] = np.inf
    best[0, edge] = 0
    _forward(tile, values, bits, best, wide)
    for t in range(WEIGHTS - 1, -1, -1):
        state = _state_into(edge, tile[t], values, bits, best[t])
        codes[t] = state & ((1 << bits) - 1)
        edge = state >> bits


@compiled()
@no_type_check
def _forward(tile, values, bits, best, wide):
    """best_1, best_2, ... from best_0; `wide` has room for a number per state."""
    edges, symbols = best.shape[1], 1 << bits
    for t in range(WEIGHTS):
        x, before, after = tile[t], best[t], best[t + 1]
        for e in range(edges):
            for k in range(symbols):
                wide[e * symbols + k] = before[e]
        after[:] = np.inf
        for k in range(symbols):
            cost, value = wide[k * edges : (k + 1) * edges], values[k * edges : (k + 1) * edges]
            for e in range(edges):
                away = x - value[e]
                total = cost[e] + away * away
                after[e] = total if total < after[e] else after[e]


@compiled()
@no_type_check
def _state_into(edge, x, values, bits, before):
    """The state that leads to this edge at the least distance."""
    edges = len(before)
    state, least = edge, np.inf
    for into in range(edge, len(values), edges):
        away = x - values[into]
        total = before[into >> bits] + away * away
        if total < least:
            state, least = into, total
    return state
