"""ggml's blocks as bytes, and back: what lies in a GGUF file in place of a weight.

A row is its super-blocks one after another (block_types.py); the fields of a super-block, in bytes:

    Q4_0, IQ4_NL   d | 16 of nibbles           Q4_1   d | m | 16 of nibbles
    Q5_0           d | 4 of fifth bits | 16    Q5_1   d | m | 4 | 16
    Q8_0           d | 32 signed codes         Q2_0   d | 16 of 4 codes each, in order
    Q2_K           16 of (s, t) nibbles | 64 of 2 bits | d | m
    Q3_K           32 of third bits | 64 of 2 bits | 12 of s | d
    Q4_K           d | m | 12 of s and t | 128 of nibbles
    Q5_K           d | m | 12 of s and t | 32 of fifth bits | 128 of nibbles
    Q6_K           128 of nibbles | 64 of 2 bits | 16 signed s | d
    IQ4_XS         d | 2 of high bits of s | 4 of low nibbles of s | 128 of nibbles

d and m are little-endian float16. *Planes* hold b bits of many codes: n bytes hold 8 n / b codes,
code i in byte i mod n at bit b (i div n) (`_plane`). Sources: ggml-common.h of llama.cpp has the
structures, `dequantize_row_*` in ggml-quants.c the order of bits.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from q2n.block_types import BlockType
from q2n.errors import InputError
from q2n.formats.codec import PackedCodec
from q2n.layers.blocks import BlockLinear, BlockStorage
from q2n.layers.quantized import QuantizedLinear, StorageSpec

Bytes = UInt8[Tensor, "supers _"]
Fields = dict[str, Tensor]
"""codes, d, m, s, t of super-blocks, a row each: d and m as two bytes."""


class _Layout(NamedTuple):
    """How a super-block is written and read."""

    fields: tuple[tuple[str, int], ...]
    """Name and bytes of each, in order."""
    write: Callable[[Fields], Fields]
    """From codes, s, t to those other than d and m."""
    read: Callable[[Fields], Fields]
    """The inverse."""


class GGMLBlocks(PackedCodec[BlockType]):
    """The weight of a layer as the bytes of its rows: `weight`, uint8 [out, bytes]."""

    name = "gguf"
    holds_mixed = True

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        return torch.float16

    def holds(self, storage: StorageSpec) -> bool:
        return isinstance(storage, BlockStorage) and super().holds(storage)

    def encode(
        self, name: str, layer: QuantizedLinear, dtype: torch.dtype
    ) -> dict[str, Shaped[Tensor, "..."]]:
        if not isinstance(layer, BlockLinear):
            raise InputError(
                f"GGUF cannot hold {name}: its representation is {layer.kind!r}, and the format "
                "has ggml's blocks only; use one of their grids (--grid q4_k), or --format native"
            )
        return {"weight": pack(layer)}

    def decode(
        self, name: str, parts: Mapping[str, Shaped[Tensor, "..."]], description: BlockType
    ) -> Float[Tensor, "out in"]:
        return unpack(parts["weight"], description).dequantize()


def pack(layer: BlockLinear) -> UInt8[Tensor, "out bytes"]:
    """The bytes of every row."""
    kind, layout = layer.type, _LAYOUTS[layer.type.name]
    supers = layer.d.numel()
    parts = {
        "codes": layer.codes.reshape(supers, -1),
        "d": layer.d.contiguous().view(torch.uint8).reshape(supers, 2),
    }
    if layer.m is not None:
        parts["m"] = layer.m.contiguous().view(torch.uint8).reshape(supers, 2)
    for name, values in (("s", layer.s), ("t", layer.t)):
        if values is not None:
            parts[name] = values.reshape(supers, -1)
    written = parts | layout.write(parts)
    joined = torch.cat([written[name] for name, _ in layout.fields], 1)
    assert joined.shape[1] == kind.bytes
    return joined.view(len(layer.codes), -1)


def unpack(data: UInt8[Tensor, "out bytes"], kind: BlockType) -> BlockLinear:
    """Inverse of `pack`.

    Raises:
        InputError: rows are not whole super-blocks.
    """
    rows, size = data.shape
    if size % kind.bytes:
        raise InputError(f"rows of {size} bytes are not whole super-blocks of {kind.name}")
    layout, blocks = _LAYOUTS[kind.name], data.reshape(-1, kind.bytes)
    sizes = [length for _, length in layout.fields]
    parts = dict(zip((name for name, _ in layout.fields), blocks.split(sizes, 1), strict=True))
    read = parts | layout.read(parts)

    def half(name: str) -> Tensor | None:
        found = read.get(name)
        return None if found is None else found.contiguous().view(torch.float16).view(rows, -1)

    def whole(name: str) -> Tensor | None:
        found = read.get(name) if kind.scale_bits is not None else None
        return None if found is None else found.reshape(rows, -1).contiguous()

    d = half("d")
    assert d is not None
    return BlockLinear(
        codes=read["codes"].reshape(rows, -1).contiguous(),
        d=d,
        m=half("m"),
        s=whole("s"),
        t=whole("t"),
        block_type=kind.name.lower(),  # type: ignore[arg-type] # a key of BLOCK_TYPES
        bits=kind.bits,
        scale_bits=kind.scale_bits,
    )


def _plane(values: Bytes, bits: int, run: int) -> Bytes:
    """Small numbers of `bits` bits in planes: `run` bytes hold those of 8 / bits runs."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=values.device)
    by_run = values.unflatten(1, (-1, 8 // bits, run))
    return (by_run << shifts[:, None]).sum(2, dtype=torch.uint8).flatten(1)


def _from_plane(data: Bytes, bits: int, run: int) -> Bytes:
    """Inverse of `_plane`."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)
    planes = data.unflatten(1, (-1, 1, run)) >> shifts[:, None]
    return (planes & (2**bits - 1)).flatten(1)


def _fifth(codes: Bytes, run: int) -> Fields:
    """Codes of 5 bits: nibbles and the bits above them, in planes."""
    return {
        "nibbles": _plane(codes & 15, 4, 16 if run == 1 else run),
        "high": _plane(codes >> 4, 1, run),
    }


def _from_fifth(parts: Fields, run: int) -> Bytes:
    """Inverse of `_fifth`."""
    nibbles = _from_plane(parts["nibbles"], 4, 16 if run == 1 else run)
    return nibbles | _from_plane(parts["high"], 1, run) << 4


def _scales_and_minima(s: Bytes, t: Bytes) -> Bytes:
    """Eight s and eight t of 6 bits in 12 bytes, as Q4_K and Q5_K have them."""
    first = torch.cat([s[:, :4] | s[:, 4:] >> 4 << 6, t[:, :4] | t[:, 4:] >> 4 << 6], 1)
    return torch.cat([first, s[:, 4:] & 15 | t[:, 4:] << 4], 1)


def _from_scales_and_minima(data: Bytes) -> tuple[Bytes, Bytes]:
    """Inverse of `_scales_and_minima`."""
    s, t, low = data.split(4, 1)
    return (
        torch.cat([s & 63, low & 15 | s >> 6 << 4], 1),
        torch.cat([t & 63, low >> 4 | t >> 6 << 4], 1),
    )


def _nibbles(run: int, *before: tuple[str, int]) -> _Layout:
    """Nothing but codes of 4 bits beside the fields `before`."""
    return _Layout(
        (*before, ("nibbles", 16)),
        lambda x: {"nibbles": _plane(x["codes"], 4, run)},
        lambda x: {"codes": _from_plane(x["nibbles"], 4, run)},
    )


def _simple_fifth(*before: tuple[str, int]) -> _Layout:
    return _Layout(
        (*before, ("high", 4), ("nibbles", 16)),
        lambda x: _fifth(x["codes"], 1),
        lambda x: {"codes": _from_fifth(x, 1)},
    )


def _write_q3_k(x: Fields) -> Fields:
    return {
        "high": _plane(x["codes"] >> 2, 1, 32),
        "low": _plane(x["codes"] & 3, 2, 32),
        "scales": torch.cat([_plane(x["s"] & 15, 4, 8), _plane(x["s"] >> 4, 2, 4)], 1),
    }


def _read_q3_k(x: Fields) -> Fields:
    low, high = x["scales"].split([8, 4], 1)
    return {
        "codes": _from_plane(x["low"], 2, 32) | _from_plane(x["high"], 1, 32) << 2,
        "s": _from_plane(low, 4, 8) | _from_plane(high, 2, 4) << 4,
    }


def _read_q4_k(x: Fields) -> Fields:
    s, t = _from_scales_and_minima(x["scales"])
    return {"codes": _from_plane(x["nibbles"], 4, 32), "s": s, "t": t}


def _read_q5_k(x: Fields) -> Fields:
    s, t = _from_scales_and_minima(x["scales"])
    return {"codes": _from_fifth(x, 32), "s": s, "t": t}


_D, _M = ("d", 2), ("m", 2)
_SIGN = 128
"""What makes a code 0 .. 255 of a signed byte, and back."""

_LAYOUTS: Mapping[str, _Layout] = {
    "Q4_0": _nibbles(16, _D),
    "IQ4_NL": _nibbles(16, _D),
    "Q4_1": _nibbles(16, _D, _M),
    "Q5_0": _simple_fifth(_D),
    "Q5_1": _simple_fifth(_D, _M),
    "Q8_0": _Layout(
        (_D, ("signed", 32)),
        lambda x: {"signed": x["codes"] ^ _SIGN},
        lambda x: {"codes": x["signed"] ^ _SIGN},
    ),
    "Q2_0": _Layout(
        (_D, ("low", 16)),
        lambda x: {"low": _plane(x["codes"], 2, 1)},
        lambda x: {"codes": _from_plane(x["low"], 2, 1)},
    ),
    "Q2_K": _Layout(
        (("scales", 16), ("low", 64), _D, _M),
        lambda x: {"scales": x["s"] | x["t"] << 4, "low": _plane(x["codes"], 2, 32)},
        lambda x: {
            "codes": _from_plane(x["low"], 2, 32),
            "s": x["scales"] & 15,
            "t": x["scales"] >> 4,
        },
    ),
    "Q3_K": _Layout((("high", 32), ("low", 64), ("scales", 12), _D), _write_q3_k, _read_q3_k),
    "Q4_K": _Layout(
        (_D, _M, ("scales", 12), ("nibbles", 128)),
        lambda x: {
            "scales": _scales_and_minima(x["s"], x["t"]),
            "nibbles": _plane(x["codes"], 4, 32),
        },
        _read_q4_k,
    ),
    "Q5_K": _Layout(
        (_D, _M, ("scales", 12), ("high", 32), ("nibbles", 128)),
        lambda x: {"scales": _scales_and_minima(x["s"], x["t"]), **_fifth(x["codes"], 32)},
        _read_q5_k,
    ),
    "Q6_K": _Layout(
        (("nibbles", 128), ("high", 64), ("scales", 16), _D),
        lambda x: {
            "nibbles": _plane(x["codes"] & 15, 4, 64),
            "high": _plane(x["codes"] >> 4, 2, 32),
            "scales": x["s"] ^ _SIGN,
        },
        lambda x: {
            "codes": _from_plane(x["nibbles"], 4, 64) | _from_plane(x["high"], 2, 32) << 4,
            "s": x["scales"] ^ _SIGN,
        },
    ),
    "IQ4_XS": _Layout(
        (_D, ("scales_high", 2), ("scales_low", 4), ("nibbles", 128)),
        lambda x: {
            "scales_high": _plane(x["s"] >> 4, 2, 1),
            "scales_low": _plane(x["s"] & 15, 4, 1),
            "nibbles": _plane(x["codes"], 4, 16),
        },
        lambda x: {
            "codes": _from_plane(x["nibbles"], 4, 16),
            "s": _from_plane(x["scales_low"], 4, 1) | _from_plane(x["scales_high"], 2, 1) << 4,
        },
    ),
}
