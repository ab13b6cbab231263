"""What stands before the tensors of a GGUF file, read.

    "GGUF", version (u32), tensors (u64), entries (u64)
    entries: key, type (u32), value; a key is a length (u64) and so many bytes
    tensors: name, dimensions (u32), sizes from the last to the first (u64), type (u32), place (u64)

Places count from the end of this on the next multiple of the alignment. gguf-py's reader makes an
array of every word of the vocabulary, which takes seconds, and stops at types that it does not
know; a damaged file makes it raise anything. Here every number is held against the size of the
file before it is used.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from q2n.errors import InputError
from q2n.formats.gguf.tensor_types import BY_NUMBER, TensorType
from q2n.option_types import shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
_MOST_DIMENSIONS = 4
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""Number of a type of entries -> struct's letter."""
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """A tensor of a file."""

    kind: TensorType
    shape: tuple[int, ...]
    """As torch has it: the last dimension lies together."""
    start: int
    """From the beginning of the file."""

    @property
    def size_bytes(self) -> int:
        """Of the tensor."""
        return self.kind.size_bytes(self.shape)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file holds."""

    entries: Mapping[str, Any]
    """Numbers and texts by key; lists are passed over."""
    tensors: Mapping[str, TensorPlace]


def read_header(file: Path) -> Header:
    """The header of a GGUF file, every tensor of which lies within the file.

    Raises:
        InputError: it is cut short, damaged, or has something that is not known here.
    """
    try:
        with file.open("rb") as stream:
            if stream.read(4) != MAGIC:
                raise InputError(f"{file} is no GGUF file; fetch it again")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(file, content).header()
    except OSError as cause:
        raise InputError(f"{file} cannot be read ({cause}); fetch it again") from cause


class _Reader:
    """Walks over the bytes of a file."""

    def __init__(self, file: Path, content: mmap.mmap):
        self.file, self.content, self.at = file, content, len(MAGIC)

    def header(self) -> Header:
        (version,) = self._numbers("I")
        if version not in VERSIONS:
            raise InputError(
                f"{self.file} is of GGUF version {version}, and {VERSIONS} are read here"
            )
        tensors, entries = self._numbers("QQ")
        found = dict(self._entry() for _ in range(entries))
        infos = [self._tensor_info() for _ in range(tensors)]
        return Header(entries=found, tensors=self._placed(infos, found.get(ALIGNMENT, 32)))

    def _numbers(self, letters: str) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{letters}")
        return layout.unpack(self._bytes(layout.size))

    def _bytes(self, count: int) -> bytes:
        start = self.at
        self._skip(count)
        return self.content[start : self.at]

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.content):
            raise InputError(
                f"{self.file} is cut short: it ends at byte {len(self.content)}, within its "
                "header; fetch it again"
            )

    def _text(self) -> str:
        (length,) = self._numbers("Q")
        return self._bytes(length).decode(errors="replace")

    def _entry(self) -> tuple[str, Any]:
        key, (kind,) = self._text(), self._numbers("I")
        return key, self._value(key, kind)

    def _value(self, key: str, kind: int) -> Any:
        if kind in _SCALARS:
            return self._numbers(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise InputError(
                f"{self.file}: entry {shown(key)} is of type {kind}, which GGUF has not; fetch it "
                "again"
            )
        return self._pass_over(key)

    def _pass_over(self, key: str) -> None:
        """A list of numbers, texts or, as nobody writes them, lists."""
        kind, count = self._numbers("IQ")
        if kind in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            for _ in range(count):
                self._skip(self._numbers("Q")[0])
        else:
            raise InputError(f"{self.file}: entry {shown(key)} is a list of type {kind}")

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, (dimensions,) = self._text(), self._numbers("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise InputError(
                f"{self.file}: tensor {shown(name)} has {dimensions} dimensions; fetch it again"
            )
        shape = self._numbers("Q" * dimensions)[::-1]
        return name, shape, *self._numbers("IQ")

    def _placed(
        self, infos: list[tuple[str, tuple[int, ...], int, int]], alignment: Any
    ) -> dict[str, TensorPlace]:
        """The tensors by name, each within the file."""
        if not isinstance(alignment, int) or not 8 <= alignment <= 2**16:
            raise InputError(f"{self.file}: {ALIGNMENT} is {shown(alignment)}; fetch it again")
        start = self.at + -self.at % alignment
        placed: dict[str, TensorPlace] = {}
        for name, shape, number, offset in infos:
            if name in placed:
                raise InputError(f"{self.file} has tensor {shown(name)} twice; fetch it again")
            placed[name] = TensorPlace(
                kind=self._kind(name, shape, number), shape=shape, start=start + offset
            )
            self._require_inside(name, placed[name])
        return placed

    def _kind(self, name: str, shape: tuple[int, ...], number: int) -> TensorType:
        if number not in BY_NUMBER:
            known = ", ".join(kind.name for kind in BY_NUMBER.values())
            raise InputError(
                f"{self.file}: tensor {shown(name)} is of ggml's type {number}, which is not known "
                f"here; known are {known}"
            )
        kind = BY_NUMBER[number]
        if prod(shape) == 0 or shape[-1] % kind.columns:
            raise InputError(
                f"{self.file}: tensor {shown(name)} has shape {shape}, which {kind.name} cannot "
                "hold; fetch it again"
            )
        return kind

    def _require_inside(self, name: str, place: TensorPlace) -> None:
        end = place.start + place.size_bytes
        if end > len(self.content):
            raise InputError(
                f"{self.file} is cut short: tensor {shown(name)} ends at byte {end}, and the file "
                f"has {len(self.content)}; fetch it again"
            )
