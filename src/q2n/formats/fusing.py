"""Single experts back into the fused tensors in which a checkpoint keeps them.

A mixture's matrices come one after another; a fused tensor is written when its last one is there.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor

from q2n.formats.shards import ShardWriter
from q2n.models.expert_parts import ExpertPart


class Fusing:
    """Stands between a container and its writer.

    Args:
        fused: as `ModelSource.fused`; nothing of it, and every tensor is written by itself.
    """

    def __init__(self, fused: Mapping[str, Mapping[str, ExpertPart]]):
        self._place = {
            name: (key, part) for key, parts in fused.items() for name, part in parts.items()
        }
        self._missing = {key: set(parts) for key, parts in fused.items()}
        self._waiting: dict[str, dict[str, Tensor]] = {key: {} for key in fused}

    def add(
        self, writer: ShardWriter, name: str, file_name: str, tensor: Shaped[Tensor, "..."]
    ) -> None:
        """Write a tensor of this name in the model, or what it completes."""
        if name not in self._place:
            writer.add(file_name, tensor)
            return
        key, _ = self._place[name]
        self._waiting[key][name] = tensor
        self._missing[key].discard(name)
        if not self._missing[key]:
            writer.add(key, self._whole(self._waiting.pop(key)))

    def _whole(self, tensors: Mapping[str, Tensor]) -> Shaped[Tensor, "..."]:
        parts = {name: self._place[name][1] for name in tensors}
        part, like = next((parts[name], tensors[name]) for name in tensors)
        experts = 1 + max(part.expert for part in parts.values())
        rows, *columns = like.shape
        sizes = [part.of * rows, *columns]
        if part.transposed:
            sizes.reverse()
        whole = torch.empty(experts, *sizes, dtype=like.dtype)
        for name, tensor in tensors.items():
            parts[name].cut(whole).copy_(tensor)
        return whole
