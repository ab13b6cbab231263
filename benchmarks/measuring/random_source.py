"""A model of given shapes with random weights: for what large models cost, without any."""

from pathlib import Path
from zlib import crc32

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from q2n.models.experts import one_by_one
from q2n.models.model_source import ModelSource
from q2n.models.skeleton import build_skeleton, stored_tensors


class RandomSource(ModelSource):
    """A model of given shapes whose tensors are random, and made when they are asked for."""

    def __init__(self, config: PretrainedConfig, dtype: torch.dtype):
        self.config, self.dtype, self.label = config, dtype, "random weights"
        # a prime number of entries: no row of a matrix repeats one above it
        self._pool = torch.randn(1_048_573, generator=torch.Generator().manual_seed(0))
        self._pool = (0.02 * self._pool).to(dtype)
        self._shapes = {name: x.shape for name, x in stored_tensors(self.skeleton())}

    def skeleton(self) -> PreTrainedModel:
        return one_by_one(build_skeleton(self.config, self.dtype))

    def names(self) -> list[str]:
        return list(self._shapes)

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        shape = self._shapes[name]
        if len(shape) < 2:  # of a norm
            made = torch.ones(shape, dtype=self.dtype)
        else:
            pool = self._pool.roll(crc32(name.encode()) % len(self._pool))
            made = pool.repeat(-(-shape.numel() // len(pool)))[: shape.numel()].view(shape)
        return made

    def digest(self) -> str:
        return "random"

    def size_bytes(self) -> int:
        return sum(shape.numel() for shape in self._shapes.values()) * self.dtype.itemsize

    def save_auxiliary(self, directory: Path) -> None:
        raise NotImplementedError("nobody writes a checkpoint of random weights")
