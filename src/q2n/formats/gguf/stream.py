"""A GGUF file written as a stream: header, entries, table of tensors, then the tensors.

The table says of every tensor its type and place, and a type may be known only when the tensor is.
But how long the table is depends on names and numbers of dimensions alone. So its place is kept,
the tensors follow one by one, each on a multiple of 32 bytes, and the table is written last.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT, GGUFWriter
from gguf.gguf_writer import WriterState
from jaxtyping import UInt8
from torch import Tensor

from q2n.formats.gguf.tensor_types import F32, TensorType

Describe = Callable[[GGUFWriter, Mapping[TensorType, int]], None]
"""Writes the entries of a file that holds so many weights of each type."""


class TensorStream:
    """A file that tensors are added to; the names and shapes of all of them are known.

    Raises:
        OSError: the disk is full.
    """

    def __init__(
        self,
        file: Path,
        architecture: str,
        describe: Describe,
        shapes: Mapping[str, tuple[int, ...]],
    ):
        self.architecture, self.describe = architecture, describe
        self.shapes = dict(shapes)
        self.types = dict.fromkeys(self.shapes, F32)
        self._missing = list(self.shapes)
        self._kept = len(self._header())
        self._stream = file.open("wb")
        self._stream.seek(self._kept)
        self.total_bytes = 0

    def add(self, name: str, kind: TensorType, data: UInt8[Tensor, "..."]) -> None:
        """Write the next tensor; they come in the order of the shapes."""
        assert name == self._missing.pop(0), name
        assert data.nbytes == kind.size_bytes(self.shapes[name]), name
        self.types[name] = kind
        self._stream.write(data.cpu().contiguous().numpy().data)
        self._stream.write(bytes(-data.nbytes % GGUF_DEFAULT_ALIGNMENT))
        self.total_bytes += data.nbytes

    def finish(self) -> None:
        """Write what comes before the tensors."""
        assert not self._missing, self._missing
        header = self._header()
        assert len(header) == self._kept
        self._stream.seek(0)
        self._stream.write(header)

    def __enter__(self) -> "TensorStream":
        return self

    def __exit__(self, *_: Any) -> None:
        self._stream.close()

    def _header(self) -> bytes:
        """Everything before the tensors, as gguf-py writes it."""
        writer = GGUFWriter(None, self.architecture)
        self.describe(writer, self._weights())
        for name, shape in self.shapes.items():
            kind = self.types[name]
            size = kind.size_bytes(shape)
            number: Any = kind.number  # not of gguf-py's enumeration, which lacks Q2_0
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=number)
        buffer: Any = BytesIO()
        writer.fout, writer.state = [buffer], WriterState.EMPTY  # an open file
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        return buffer.getvalue() + bytes(-buffer.tell() % GGUF_DEFAULT_ALIGNMENT)

    def _weights(self) -> Counter[TensorType]:
        weights: Counter[TensorType] = Counter()
        for name, shape in self.shapes.items():
            weights[self.types[name]] += prod(shape)
        return weights
