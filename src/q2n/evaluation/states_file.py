"""States of a text in a temporary file: written once in order, read in the same order.

They are all that is kept of a model that has run: tokens x width numbers in the model's dtype,
16 KB a token for a model of 70 billion weights. The file has no name and is gone with the process.
Of a short text it never leaves the operating system's cache.
"""

import tempfile
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.disk.failures import reason
from q2n.errors import InputError


class StatesFile:
    """States of one window after the other."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="q2n-states-")  # noqa: SIM115
        self._forms: list[tuple[torch.Size, torch.dtype]] = []

    def append(self, states: Float[Tensor, "tokens width"]) -> None:
        """Add a window.

        Raises:
            InputError: the disk is full.
        """
        try:
            self._file.write(states.cpu().contiguous().view(torch.uint8).numpy().data)
        except OSError as cause:
            raise InputError(
                f"states of the reference model cannot be written to {tempfile.gettempdir()} "
                f"({reason(cause)}); free space there, or name another folder in TMPDIR"
            ) from cause
        self._forms.append((states.shape, states.dtype))

    def __iter__(self) -> Iterator[Float[Tensor, "tokens width"]]:
        """All windows, from the first; one reader at a time."""
        self._file.seek(0)
        for shape, dtype in self._forms:
            size = shape.numel() * dtype.itemsize
            yield torch.frombuffer(bytearray(self._file.read(size)), dtype=dtype).view(shape)
