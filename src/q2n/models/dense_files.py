"""Files whose tensors stand for dense ones, shown as the dense ones.

Some of the dense tensors are made from several stored ones, codes and factors; the others are as
they lie. What they are made from does not show, and everything that asks for names, shapes, bytes
or tensors sees the files of a plain checkpoint.
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from q2n.errors import InputError
from q2n.models.checkpoint_files import StoredTensors
from q2n.models.one_pass import NAMES


class DenseFiles(StoredTensors):
    """Of `made`, each in `dtype`, and the tensors of `files`.

    Args:
        made: names -> the tensor in `files` that says how large its numbers are; their file is
            that one's.
        left_out: names in `files` that do not show.
    """

    kind: ClassVar[str]
    """What its readers call the form of the files."""

    def __init__(
        self,
        files: StoredTensors,
        dtype: torch.dtype,
        made: Mapping[str, str],
        left_out: Collection[str],
    ):
        self._files, self._dtype, self._made = files, dtype, made
        self.folder = files.folder
        self.file_of = {key: file for key, file in files.file_of.items() if key not in left_out}
        self.file_of |= {key: files.file_of[factors] for key, factors in made.items()}

    @property
    def files(self) -> set[Path]:
        return self._files.files

    @abstractmethod
    def dense_shape(self, key: str) -> tuple[int, ...]:
        """Shape of one of `made`."""

    @abstractmethod
    def dense(self, key: str) -> Float[Tensor, "..."]:
        """One of `made`, rounded once. Raises as `tensor`."""

    def shape(self, key: str) -> tuple[int, ...]:
        return self.dense_shape(key) if key in self._made else self._files.shape(key)

    def dtype(self, key: str) -> str:
        return NAMES[self._dtype] if key in self._made else self._files.dtype(key)

    def size_bytes(self, key: str) -> int:
        if key not in self._made:
            return self._files.size_bytes(key)
        return prod(self.dense_shape(key)) * self._dtype.itemsize

    def digest_and_extremes(self, file: Path) -> tuple[bytes, dict[str, Float64[Tensor, " 2"]]]:
        digest, extremes = self._files.digest_and_extremes(file)
        for key in extremes.keys() - self.file_of.keys():
            if not extremes[key].isfinite().all():
                raise InputError(f"{file}: tensor {key!r} has NaN or Inf; fetch it again")
        return digest, {key: pair for key, pair in extremes.items() if key in self.file_of}

    def tensor(self, key: str) -> Shaped[Tensor, "..."]:
        return self.dense(key) if key in self._made else self._files.tensor(key)

    def entry(self, key: str, index: int) -> Shaped[Tensor, "..."]:
        return super().entry(key, index) if key in self._made else self._files.entry(key, index)


def require_both(files: StoredTensors, codes: str, factors: str) -> None:
    """Refuse files that hold one of two tensors without the other.

    Raises:
        InputError: naming both.
    """
    for here, lacking in ((codes, factors), (factors, codes)):
        if lacking not in files.file_of:
            raise InputError(
                f"{files.folder}: {here!r} has no {lacking!r} beside it; fetch the checkpoint again"
            )
