"""Block inputs of all batches: on the device, in main memory, or on disk.

They are the bulk of what a run holds (windows x length x hidden size, in the model's
dtype). `device` is the fastest; `cpu` and `disk` keep one batch on the device at a time. With a
limit, the first batches stay in memory, as many as fit, and the others go to disk. Where they lie
changes no number.
"""

import math
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from q2n.disk.failures import reason, remedy
from q2n.disk.folders import fresh_folder, remove_known
from q2n.errors import InputError

FOLDER = "activations"
"""Where they lie within the folder of a run, a folder for each stream."""
_BATCH_FILE = re.compile(r"batch-\d{5}\.(safetensors|tmp)")


def is_batch_file(path: str) -> bool:
    """Whether a path within the folder of a run is that of block inputs."""
    top, _, rest = path.partition("/")
    return top == FOLDER and bool(_BATCH_FILE.fullmatch(rest.rpartition("/")[2]))


class Activations(ABC):
    """A fixed number of batches of hidden states, each replaced as it passes a block."""

    device: torch.device
    """Where they are handed out."""
    storage: torch.device
    """Where they are kept; the CPU if on disk."""

    @property
    @abstractmethod
    def keeps_passes(self) -> bool:
        """Whether paused passes may stay alive between stages (their batches are on the device)."""

    @abstractmethod
    def get(self, batch: int) -> Float[Tensor, "*batch hidden"]:
        """One batch, on the device."""

    @abstractmethod
    def put(self, batch: int, hidden: Float[Tensor, "*batch hidden"]) -> None:
        """Replace one batch."""

    @abstractmethod
    def close(self) -> None:
        """Release everything."""


class InMemory(Activations):
    """Hidden states in the memory of `storage`; handed out on `device`."""

    def __init__(self, storage: torch.device, device: torch.device):
        self.storage, self.device = storage, device
        self._batches: dict[int, Tensor] = {}

    @property
    def keeps_passes(self) -> bool:
        return self.storage == self.device

    def get(self, batch: int) -> Float[Tensor, "*batch hidden"]:
        return self._batches[batch].to(self.device)

    def put(self, batch: int, hidden: Float[Tensor, "*batch hidden"]) -> None:
        self._batches[batch] = hidden.to(self.storage)

    def close(self) -> None:
        self._batches.clear()


class OnDisk(Activations):
    """Hidden states in one safetensors file per batch; `instead` is what needs no disk, for
    messages."""

    storage = torch.device("cpu")

    def __init__(self, folder: Path, device: torch.device, instead: str = "use --activations cpu"):
        self.folder, self.device, self.instead = folder, device, instead
        try:
            fresh_folder(folder, _BATCH_FILE.fullmatch)  # after a kill the old ones lie there
        except OSError as cause:
            raise self._refusal(cause) from cause

    @property
    def keeps_passes(self) -> bool:
        return False

    def get(self, batch: int) -> Float[Tensor, "*batch hidden"]:
        return load_file(self._file(batch))["hidden"].to(self.device)

    def put(self, batch: int, hidden: Float[Tensor, "*batch hidden"]) -> None:
        # A tensor read from the old file may still map it: replace the file, never rewrite it.
        fresh = self._file(batch).with_suffix(".tmp")
        try:
            save_file({"hidden": hidden.cpu().contiguous()}, fresh)
            fresh.replace(self._file(batch))
        except (OSError, SafetensorError) as cause:
            raise self._refusal(cause) from cause

    def close(self) -> None:
        remove_known(self.folder, _BATCH_FILE.fullmatch)

    def _refusal(self, cause: Exception) -> InputError:
        return InputError(
            f"block inputs cannot be written to {self.folder} ({reason(cause)}); {remedy(cause)}, "
            f"or {self.instead}, then go on with --resume"
        )

    def _file(self, batch: int) -> Path:
        return self.folder / f"batch-{batch:05d}.safetensors"


class Limited(Activations):
    """The first batches in memory, up to `limit` bytes, and the others on disk.

    A batch stays where it was put first: its size does not change from block to block. Paused
    passes hold several times what a block input does, so they stay alive only while nothing has
    gone to disk.
    """

    def __init__(self, memory: InMemory, disk: OnDisk, limit: float):
        self.device, self.storage = memory.device, memory.storage
        self._memory, self._disk, self._room = memory, disk, limit
        self._place: dict[int, Activations] = {}

    @property
    def keeps_passes(self) -> bool:
        return self._memory.keeps_passes and self._disk not in self._place.values()

    def get(self, batch: int) -> Float[Tensor, "*batch hidden"]:
        return self._place[batch].get(batch)

    def put(self, batch: int, hidden: Float[Tensor, "*batch hidden"]) -> None:
        if batch not in self._place:
            fits = hidden.nbytes <= self._room
            self._place[batch] = self._memory if fits else self._disk
            self._room -= hidden.nbytes if fits else 0
        self._place[batch].put(batch, hidden)

    def close(self) -> None:
        self._memory.close()
        self._disk.close()


Place = Literal["device", "cpu", "disk"]


def activations(
    place: Place, device: torch.device, folder: Path, limit: float = math.inf
) -> Activations:
    """Storage for block inputs at this place.

    Args:
        folder: for those on disk.
        limit: bytes that may lie in memory.
    """
    if place == "disk":
        return OnDisk(folder, device)
    memory = InMemory(device if place == "device" else torch.device("cpu"), device)
    return memory if limit == math.inf else Limited(memory, OnDisk(folder, device), limit)
