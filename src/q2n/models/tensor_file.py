"""One safetensors file, read without being mapped.

A file is 8 bytes of length, a header in JSON and the bytes of all tensors without a gap:

    {"NAME": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}

The library checks the header. A tensor, or one entry of it, is read from its place into memory of
its own. To map the file instead would reserve memory for all of it, which limits on a process
count, and the tensor would be copied all the same.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from q2n.errors import InputError

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""Numbers of whole bytes, by their names in the header."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in its file."""

    dtype: str
    """As the header calls it ("BF16")."""
    shape: tuple[int, ...]
    start: int
    """Of its bytes, from the beginning of the file."""
    size: int
    """Its bytes."""


def places(header: bytes) -> dict[str, Place]:
    """Every tensor of a file, by name, from the header's JSON."""
    described: Mapping = json.loads(header)
    first = 8 + len(header)
    return {
        name: Place(
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            start=first + entry["data_offsets"][0],
            size=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in sorted(described.items())
        if name != "__metadata__"
    }


def read_places(file: Path) -> dict[str, Place]:
    """Every tensor of a safetensors file, by name.

    Raises:
        InputError: it is missing, truncated or something else.
    """
    try:
        safe_open(file, framework="pt", device="cpu", backend="pread")
        with file.open("rb") as stream:
            return places(stream.read(int.from_bytes(stream.read(8), "little")))
    except (SafetensorError, OSError) as cause:
        raise InputError(
            f"{file} is missing, truncated or not safetensors ({cause}); fetch it again"
        ) from cause


def read_tensor(file: Path, place: Place, index: int | None = None) -> Shaped[Tensor, "..."]:
    """A tensor on the CPU, or its entry at `index` of the first axis alone.

    Raises:
        ValueError: its numbers are of a kind that torch does not have.
        OSError: the file cannot be read, or ends early.
    """
    if place.dtype not in DTYPES:
        raise ValueError(f"numbers of kind {place.dtype} are not read here")
    shape = place.shape if index is None else place.shape[1:]
    tensor = torch.empty(shape, dtype=DTYPES[place.dtype])
    room = tensor.reshape(-1).view(torch.uint8).numpy().data
    with file.open("rb") as stream:
        stream.seek(place.start + (index or 0) * len(room))
        if stream.readinto(room) != len(room):
            raise OSError("it ends early")
    return tensor
