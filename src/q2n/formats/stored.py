"""A quantized linear without its numbers: what is remembered once its tensors are written."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch

from q2n.layers.quantized import QuantizedLinear


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor of a quantized linear."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    bits: int | None
    """Of an entry, where the representation says that they are small whole numbers."""

    @property
    def numel(self) -> int:
        """Number of entries."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class StoredLayer:
    """A quantized linear."""

    kind: str
    shape: tuple[int, int]
    """(out, in)."""
    metadata: Mapping[str, Any]
    """`QuantizedLinear.metadata()`."""
    tensors: Mapping[str, StoredTensor]
    """`QuantizedLinear.tensors()`."""

    @classmethod
    def of(cls, layer: QuantizedLinear) -> Self:
        """What a layer is."""
        tensors = {
            name: StoredTensor(
                shape=tuple(tensor.shape), dtype=tensor.dtype, bits=layer.widths.get(name)
            )
            for name, tensor in layer.tensors().items()
        }
        return cls(kind=layer.kind, shape=layer.shape, metadata=layer.metadata(), tensors=tensors)
