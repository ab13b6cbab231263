"""Quantized layers by name, where a look at one may read a file."""

from abc import abstractmethod
from collections.abc import Mapping

from q2n.layers.quantized import QuantizedLinear


class StoredByName(Mapping[str, QuantizedLinear]):
    """A mapping that reads a layer when it is asked for, and knows its width without."""

    @abstractmethod
    def bits_per_weight(self, name: str) -> float:
        """As `QuantizedLinear.bits_per_weight`."""


def bits_per_weight(layers: Mapping[str, QuantizedLinear], name: str) -> float:
    """Of one of them, without reading it where that can be."""
    if isinstance(layers, StoredByName):
        return layers.bits_per_weight(name)
    return layers[name].bits_per_weight
