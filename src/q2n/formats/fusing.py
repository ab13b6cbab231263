"""Single experts back into the fused tensors in which a checkpoint keeps them.

A mixture's matrices come one after another; a fused tensor is written when its last one is there.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor

from q2n.formats.shards import ShardWriter
from q2n.models.expert_parts import ExpertPart, expert_total


class Fusing:
    """Stands between a container and its writer.

    Args:
        fused: as `ModelSource.fused`; nothing of it, and every tensor is written by itself.
    """

    def __init__(self, fused: Mapping[str, Mapping[str, ExpertPart]]):
        self._fused = fused
        self._key_of = {name: key for key, parts in fused.items() for name in parts}
        self._missing = {key: set(parts) for key, parts in fused.items()}
        self._begun: dict[str, Tensor] = {}

    def add(
        self, writer: ShardWriter, name: str, file_name: str, tensor: Shaped[Tensor, "..."]
    ) -> None:
        """Write a tensor of this name in the model, or what it completes."""
        if name not in self._key_of:
            writer.add(file_name, tensor)
            return
        key = self._key_of[name]
        part = self._fused[key][name]
        if key not in self._begun:
            self._begun[key] = _room(part, expert_total(self._fused[key].values()), tensor)
        part.cut(self._begun[key]).copy_(tensor)
        self._missing[key].remove(name)
        if not self._missing[key]:
            writer.add(key, self._begun.pop(key))


def _room(part: ExpertPart, experts: int, like: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """A fused tensor for so many experts, not filled, of one of its parts and a tensor for it."""
    rows, *columns = like.shape
    sizes = [part.of * rows, *columns]
    if part.transposed:
        sizes.reverse()
    return torch.empty(experts, *sizes, dtype=like.dtype)
