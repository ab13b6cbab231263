"""The digest of a safetensors file and the extremes of its tensors, from one reading.

A file is 8 bytes of length, a header in JSON with the bytes of every tensor, and these bytes, one
tensor after another. They are read once, in pieces: each goes into the SHA-256 and into the least
and the greatest number of its tensor. NaN makes both of them NaN, and rounding keeps order, so that
the two say whether a tensor has NaN or Inf in any dtype.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Float64
from torch import Tensor

from q2n.models.tensor_file import places

PIECE = 2**20
"""Bytes read at a time: a multiple of every number's size, and little enough for a cache."""

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Floating-point numbers by their names in the header."""
NAMES = {dtype: name for name, dtype in FLOATS.items()}
"""Their names in the header."""


def digest_and_extremes(file: Path) -> tuple[bytes, dict[str, Float64[Tensor, " 2"]]]:
    """SHA-256 of a safetensors file and (least, greatest) of every floating-point tensor in it
    that has numbers at all.

    Raises:
        OSError: it cannot be read.
    """
    total, extremes = hashlib.sha256(), {}
    with file.open("rb") as stream, _one_thread():
        start = stream.read(8)
        header = stream.read(int.from_bytes(start, "little"))
        total.update(start + header)
        for name, dtype, size in _tensors(header):
            pairs = []
            for piece in _pieces(stream, size):
                total.update(piece)
                if dtype in FLOATS:
                    pairs.append(_extremes(piece, FLOATS[dtype]))
            if pairs:
                extremes[name] = torch.stack(torch.aminmax(torch.cat(pairs)))
    return total.digest(), extremes


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch without threads of its own: to start them takes longer than a piece."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tensors(header: bytes) -> Iterator[tuple[str, str, int]]:
    """Name, dtype and bytes of every tensor, in the order of the file."""
    found = places(header).items()
    for name, place in sorted(found, key=lambda item: (item[1].start, item[1].size)):
        yield name, place.dtype, place.size


def _pieces(stream: BinaryIO, size: int) -> Iterator[memoryview]:
    """The next bytes; a piece is good until the next one is asked for."""
    buffer = memoryview(bytearray(min(size, PIECE)))
    while size:
        piece = buffer[: min(size, PIECE)]
        if stream.readinto(piece) != len(piece):  # type: ignore[attr-defined]
            raise OSError("it ends early")
        size -= len(piece)
        yield piece


def _extremes(piece: memoryview, dtype: torch.dtype) -> Float64[Tensor, " 2"]:
    numbers = torch.frombuffer(piece, dtype=dtype)
    if dtype.itemsize == 1:
        numbers = numbers.float()  # torch compares no 8-bit floats
    return torch.stack(torch.aminmax(numbers)).double()
