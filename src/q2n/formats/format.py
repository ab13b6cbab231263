"""What a checkpoint format is: how one quantized linear is stored, and how it is read back.

A format does not know files or models. The writer (checkpoint.py) asks it for the tensors
of one layer at a time and, at the end, for the part of config.json that tells readers what
they are looking at; the reader (load.py) hands the tensors of one layer back.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.layers.quantized import QuantizedLinear, StorageSpec


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor of a quantized linear, without its numbers."""

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
    """A quantized linear without its numbers: what is remembered once its tensors are written."""

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


class Format(ABC):
    """One way to store quantized linears in a Hugging Face checkpoint."""

    name: ClassVar[str]
    """Name on the command line."""
    quant_method: ClassVar[str | None] = None
    """What readers find in config.json; None for a plain checkpoint."""
    config_copy: ClassVar[str | None] = None
    """A second file, beside config.json, in which readers look for the quantization config."""

    @abstractmethod
    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """The dtype in which this format stores the scales of a model of `model_dtype`."""

    def holds(self, storage: StorageSpec) -> bool:
        """Whether it has a place for the representation at all. A format says otherwise if it
        has none for some kinds, or one for what a model does at runtime."""
        return not storage.runtime

    def check(self, name: str, shape: tuple[int, int], storage: StorageSpec) -> None:  # noqa: B027 - optional
        """Refuse, before any work is done, a layer of `shape` (out, in) and a form that the
        format `holds`; any shape will do unless a format says otherwise.

        Raises:
            InputError: it does not fit; the message names the layer and what would.
        """

    @abstractmethod
    def tensors(self, name: str, layer: QuantizedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors that replace `<name>.weight`, by full name, in a model of `dtype`.

        Raises:
            InputError: the format cannot hold this representation, shape or scale.
        """

    @abstractmethod
    def quantization_config(
        self, layers: Mapping[str, StoredLayer], unquantized: Sequence[str]
    ) -> dict[str, Any] | None:
        """`quantization_config` of config.json; None for a plain checkpoint.

        `unquantized` names the model's other linear modules.

        Raises:
            InputError: the format cannot describe this mixture of layers.
        """

    @abstractmethod
    def loading_example(self, directory: Path) -> str:
        """Python lines that load a checkpoint of this format with transformers."""


@dataclass(frozen=True, kw_only=True)
class PackedLayer:
    """How a layer is read back."""

    parts: tuple[str, ...]
    """Names, under the module, of the tensors that replace its weight."""
    dense: Callable[[Mapping[str, Tensor]], Float[Tensor, "out in"]]
    """The weight in float32 from these tensors. Raises InputError if they are damaged."""


class PackedFormat(Format):
    """A format whose tensors are not weights yet, and so needs an inverse."""

    @abstractmethod
    def packed_layers(
        self, keys: Iterable[str], config: Mapping[str, Any]
    ) -> dict[str, PackedLayer]:
        """Every quantized linear of a checkpoint, in the order of its tensors' names `keys`, from
        the quantization config.

        Raises:
            InputError: the file is of a variant that is not read here.
        """
