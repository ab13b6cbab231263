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
        self._waiting: dict[str, dict[str, Tensor]] = {key: {} for key in fused}

    def add(
        self, writer: ShardWriter, name: str, file_name: str, tensor: Shaped[Tensor, "..."]
    ) -> None:
        """Write a tensor of this name in the model, or what it completes."""
        if name not in self._key_of:
            writer.add(file_name, tensor)
            return
        key = self._key_of[name]
        self._waiting[key][name] = tensor
        if len(self._waiting[key]) == len(self._fused[key]):
            writer.add(key, _whole(self._fused[key], self._waiting.pop(key)))


def _whole(parts: Mapping[str, ExpertPart], tensors: Mapping[str, Tensor]) -> Shaped[Tensor, "..."]:
    """The fused tensor of all its parts."""
    part, like = next((parts[name], tensors[name]) for name in tensors)
    rows, *columns = like.shape
    sizes = [part.of * rows, *columns]
    if part.transposed:
        sizes.reverse()
    whole = torch.empty(expert_total(parts.values()), *sizes, dtype=like.dtype)
    for name, tensor in tensors.items():
        parts[name].cut(whole).copy_(tensor)
    return whole
