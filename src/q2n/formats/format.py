"""What a checkpoint format is: how one quantized linear is stored, and how it is read back.

A format does not know files or models. The writer (checkpoint.py) asks it for the tensors
of one layer at a time and, at the end, for the part of config.json that tells readers what
they are looking at; the reader (load.py) hands the tensors of one layer back.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.grids.quantized import QuantizedLinear


@dataclass(frozen=True, kw_only=True)
class StoredLayer:
    """What is remembered of a layer once its tensors are written."""

    shape: tuple[int, int]
    """(out, in)."""
    metadata: Mapping[str, Any]
    """`QuantizedLinear.metadata()`."""


class Format(ABC):
    """One way to store quantized linears in a Hugging Face checkpoint."""

    name: ClassVar[str]
    """Name on the command line."""
    quant_method: ClassVar[str | None] = None
    """What readers find in config.json; None for a plain checkpoint."""
    config_copy: ClassVar[str | None] = None
    """A second file, beside config.json, in which readers look for the quantization config."""
    runs_online_parts: ClassVar[bool] = False
    """Whether its readers run what a rotated model needs beside its weights."""

    @abstractmethod
    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """The dtype in which this format stores the scales of a model of `model_dtype`."""

    @abstractmethod
    def check(self, name: str, shape: tuple[int, int], *, bits: int, group_size: int) -> None:
        """Refuse, before any work is done, a layer that the format cannot hold.

        `shape` is (out, in); `group_size` -1 means one group a row.

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


class PackedFormat(Format):
    """A format whose tensors are not weights yet, and so needs an inverse."""

    parts: ClassVar[tuple[str, ...]]
    """Names under the module of the tensors that replace its weight; the first always exists."""

    @abstractmethod
    def dense(
        self, parts: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> Float[Tensor, "out in"]:
        """The inverse of `tensors`: the weight in float32 from one layer's stored parts (by the
        names in `parts`) and the quantization config.

        Raises:
            InputError: the file is of a variant that is not read here.
        """
