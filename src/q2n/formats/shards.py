"""A checkpoint's safetensors files, written as a stream.

Tensors are buffered until the next one would push a file over the limit; then the file is
written and the buffer dropped. The number of files is known only at the end, so `finish`
gives them their final names, and the index that readers need when there are several.
Never more than one file's tensors are in memory (safetensors copies them once more while
it writes).
"""

import json
from pathlib import Path

from jaxtyping import Shaped
from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 512 * 2**20


class ShardWriter:
    """Writes named tensors into a folder as model*.safetensors."""

    def __init__(self, directory: Path, limit: int = SHARD_BYTES):
        self.directory, self.limit = directory, limit
        self.total_bytes = 0
        self._buffer: dict[str, Tensor] = {}
        self._buffered = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Shaped[Tensor, "..."]) -> None:
        """Queue one tensor; each name once."""
        size = tensor.numel() * tensor.element_size()
        if self._buffer and self._buffered + size > self.limit:
            self._flush()
        self._buffer[name] = _own_memory(tensor)
        self._buffered += size
        self.total_bytes += size

    def finish(self) -> list[Path]:
        """Write what is left, name the files, write the index. Returns the tensor files."""
        if self._buffer:
            self._flush()
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

    def _flush(self) -> None:
        save_file(self._buffer, self._unnamed(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(self._buffer))
        self._buffer, self._buffered = {}, 0

    def _unnamed(self, shard: int) -> Path:
        return self.directory / f"shard-{shard:05d}.safetensors"


def tensor_bytes(directory: Path) -> int:
    """Bytes of all tensors of a checkpoint: its files without their headers."""
    total = 0
    for file in directory.glob("*.safetensors"):
        with file.open("rb") as stream:
            total += file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")
    return total


def _own_memory(tensor: Shaped[Tensor, "..."]) -> Tensor:
    """Contiguous on the CPU, and not a window that keeps a larger tensor alive."""
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()
