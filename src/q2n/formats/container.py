"""A container says how tensors, configuration, tokenizer and metadata become a checkpoint.

Whatever it is, it lies in a folder of its own. It is written within the working folder beside that,
flushed to the disk and renamed at the end: the checkpoint is complete or it is not there.
"""

import fnmatch
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

from safetensors import SafetensorError

from q2n.disk.failures import reason, remedy
from q2n.disk.folders import (
    fresh_folder,
    leave_working_folder,
    make_working_folder,
    partial_folder,
    remove_known,
)
from q2n.disk.space import require_space
from q2n.errors import InputError
from q2n.formats.codec import Codec
from q2n.formats.quantized_model import QuantizedModel
from q2n.layers.quantized import StorageSpec
from q2n.models.auxiliary_files import auxiliary_patterns
from q2n.models.full_precision import FullPrecision, full_precision
from q2n.models.model_source import ModelSource

WRITING = "checkpoint"
"""The folder within the working folder that becomes the checkpoint."""
WRITTEN = (
    "*.safetensors",
    "*.gguf",
    "*.json",
    "README.md",
    *auxiliary_patterns(trust_remote_code=True),
)
"""Names of all files of a checkpoint."""
_written = re.compile("|".join(map(fnmatch.translate, WRITTEN))).fullmatch


class Container(ABC):
    """One kind of checkpoint on disk."""

    language: ClassVar[str] = "python"
    """Of `loading_example`: python, or sh for a command."""

    @property
    @abstractmethod
    def tags(self) -> tuple[str, ...]:
        """Under which model hubs list such checkpoints."""

    @property
    def library(self) -> str:
        """Which library loads it, as model hubs call it."""
        return "transformers"

    @abstractmethod
    def loading_example(self, directory: Path) -> str:
        """Lines that load a checkpoint."""

    def storing_outside(self, name: str) -> Self:
        """The same container, with what no method quantizes in a type of this name.

        Raises:
            InputError: it has no such choice.
        """
        raise InputError(
            "gguf_outside is a choice of GGUF files: add --format gguf, or leave it out"
        )

    @property
    def outside_bits(self) -> tuple[int, ...]:
        """Widths in which it can hold embeddings and head."""
        return ()

    def with_outside_bits(self, bits: int) -> Self:
        """The same container, with embeddings and head in one of `outside_bits`."""
        raise NotImplementedError

    def check(self, source: ModelSource, storage: StorageSpec) -> list[str]:
        """Refuse, before any work is done, a model that has no place in it; gives what a user must
        know of the checkpoint with layers like that, in sentences without a full stop.

        Raises:
            InputError: naming what has no place, and what would do.
        """
        return []

    def check_experts(  # noqa: B027 - optional
        self, source: ModelSource, storage: StorageSpec, left: Sequence[str]
    ) -> None:
        """Refuse, before any work is done, to quantize experts of a mixture that its readers would
        not load; called only where there are some.

        Args:
            left: linears of experts that stay as they are in mixtures of which others do not.

        Raises:
            InputError: with the reason, and what would do.
        """

    def outside_types(self, source: ModelSource) -> str:
        """What becomes of what no method quantizes, in one sentence."""
        return "Embeddings, norms, biases and the output head are not quantized."

    def kept(self, source: ModelSource, quantized: Collection[str]) -> FullPrecision:
        """What a checkpoint holds besides the `quantized` linears (names of modules)."""
        return full_precision(source, quantized)

    @abstractmethod
    def tensor_bytes(self, directory: Path) -> int:
        """Bytes of all tensors of a checkpoint.

        Raises:
            InputError: it cannot be read.
        """

    @abstractmethod
    def write_into(self, folder: Path, model: QuantizedModel, codec: Codec) -> int:
        """Write everything into an empty folder, one tensor at a time; returns the bytes of all
        tensors. Each layer is read once, in the model's order.

        Raises:
            InputError: the codec or the container cannot hold a layer.
            OSError, SafetensorError: the disk is full.
        """

    @abstractmethod
    def recognizes(self, directory: Path) -> bool:
        """Whether `open` reads what lies there."""

    @abstractmethod
    def open(
        self, folder: Path, codec: Codec, dtype: str, *, trust_remote_code: bool = False
    ) -> ModelSource:
        """The checkpoint as a source of dense tensors in `dtype` ("auto": the checkpoint's), each
        weight dequantized in float32 and rounded once, when it is asked for. `trust_remote_code`
        lets it run its own Python code.

        Raises:
            InputError: a file is missing, truncated or of an unknown variant; the message names it.
            RuntimeError, ValueError: the tensors do not fit the configuration.
        """

    def write(
        self,
        directory: Path,
        model: QuantizedModel,
        codec: Codec,
        complete: Callable[[Path, int], None] | None = None,
    ) -> int:
        """Write a checkpoint; returns the bytes of all its tensors.

        Args:
            directory: must not exist.
            complete: called with the folder, loadable but not yet in its place, and the bytes of
                its tensors: what it measures there and writes there appears with the rest.

        Raises:
            InputError: the folder exists, the disk is too small, or a layer cannot be held.
                Nothing is left behind.
        """
        with _complete_folder(Path(directory)) as folder:
            require_space(folder, self._size_bytes(model, codec), "the checkpoint needs about")
            size = self.write_into(folder, model, codec)
            if complete is not None:
                complete(folder, size)
        return size

    def _size_bytes(self, model: QuantizedModel, codec: Codec) -> float:
        """About the bytes of all tensors."""
        return self.kept(model.source, model.layers).bits / 8 + model.quantized_bytes(codec)


@contextmanager
def _complete_folder(directory: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `directory` on success and removed on failure."""
    if os.path.lexists(directory):
        raise InputError(f"{directory} exists already; choose another output folder")
    working = partial_folder(directory)
    make_working_folder(working)
    folder = working / WRITING
    try:
        fresh_folder(folder, _written)  # of a run that was killed
        yield folder
        _flush(folder)
        folder.rename(directory)
    except (OSError, SafetensorError) as cause:
        raise InputError(
            f"{directory} cannot be written ({reason(cause)}); {remedy(cause)}"
        ) from cause
    finally:
        remove_known(folder, _written)
        leave_working_folder(working)


def _flush(folder: Path) -> None:
    """Have all files of a folder on the disk."""
    for file in filter(Path.is_file, folder.rglob("*")):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
