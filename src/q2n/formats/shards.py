"""A checkpoint's safetensors files, written as a stream.

The header of a file names its tensors, in an order that is not the one in which they come, so it
cannot be written before the last of them is there. Until then their bytes stand on the disk, in a
nameless file that ends with the process; of it the library makes the file. The number of files is
known only at the end, so `finish` gives them their final names, and the index that readers need
when there are several. No tensor stays in memory.
"""

import json
from mmap import mmap
from pathlib import Path
from tempfile import TemporaryFile

import torch
from jaxtyping import Shaped
from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 512 * 2**20


class ShardWriter:
    """Writes named tensors into a folder as model*.safetensors."""

    def __init__(self, directory: Path, limit: int = SHARD_BYTES):
        self.directory, self.limit = directory, limit
        self.total_bytes = 0
        self._waiting = _Waiting(directory)
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Shaped[Tensor, "..."]) -> None:
        """Take one tensor; each name once.

        Raises:
            OSError, SafetensorError: the disk is full.
        """
        size = tensor.numel() * tensor.element_size()
        if self._waiting.any and self._waiting.size + size > self.limit:
            self._write_file()
        self._waiting.add(name, tensor)
        self.total_bytes += size

    def finish(self) -> list[Path]:
        """Write what is left, name the files, write the index. Returns the tensor files. Raises as
        `add`."""
        if self._waiting.any:
            self._write_file()
        count = len(self._shards)
        if count == 1:
            return [self._unnamed(0).rename(self.directory / "model.safetensors")]
        files = [
            self._unnamed(i).rename(
                self.directory / f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            )
            for i in range(count)
        ]
        index = {
            "metadata": {"total_size": self.total_bytes},
            "weight_map": {
                name: file.name
                for file, names in zip(files, self._shards, strict=True)
                for name in names
            },
        }
        (self.directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
        return files

    def _write_file(self) -> None:
        tensors, file = self._waiting.mapped(), self._unnamed(len(self._shards))
        file.touch()
        mode = file.stat().st_mode
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod(mode)  # safetensors lets nobody else read it
        self._shards.append(list(tensors))
        self._waiting = _Waiting(self.directory)

    def _unnamed(self, shard: int) -> Path:
        return self.directory / f"shard-{shard:05d}.safetensors"


class _Waiting:
    """Tensors of a file that is not yet written: their bytes, one after another, on the disk."""

    def __init__(self, directory: Path):
        self.size = 0
        self._data = TemporaryFile(dir=directory)  # noqa: SIM115 - ends with this object
        self._tensors: dict[str, tuple[int, torch.dtype, torch.Size]] = {}
        """Start, dtype and shape."""

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._tensors)

    def add(self, name: str, tensor: Shaped[Tensor, "..."]) -> None:
        """Keep one more."""
        plain = tensor.detach().cpu().contiguous()
        self._tensors[name] = (self.size, plain.dtype, plain.shape)
        self.size += self._data.write(plain.reshape(-1).view(torch.uint8).numpy().data)

    def mapped(self) -> dict[str, Shaped[Tensor, "..."]]:
        """All of them, as pages of the file, which are no memory of the process."""
        self._data.flush()
        pages = mmap(self._data.fileno(), self.size) if self.size else b""
        return {
            name: torch.frombuffer(pages, dtype=dtype, count=shape.numel(), offset=start).view(
                shape
            )
            if shape.numel()
            else torch.empty(shape, dtype=dtype)
            for name, (start, dtype, shape) in self._tensors.items()
        }
