"""A codec says how one quantized linear becomes tensors, and back.

It knows neither files nor models. The container (container.py) asks it for the tensors of one layer
at a time, gives them their names in the file and keeps what a reader needs besides them, the
description: for a uniform grid its bits, for the native layout the shape of every tensor.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from q2n.errors import InputError
from q2n.layers.quantized import QuantizedLinear, StorageSpec

Description = TypeVar("Description")
"""What a reader must know of a layer besides its tensors."""


class Codec(ABC):
    """One way to store quantized linears as tensors."""

    name: ClassVar[str]
    """As messages call it."""

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """The dtype in which the scales of a model of `model_dtype` are stored: that one, or
        float16 for a wider one. Runtimes read scales in the 16 bits in which they compute: vLLM
        runs a float32 model in float16 (`--dtype auto` in its documentation)."""
        return model_dtype if model_dtype.itemsize == 2 else torch.float16

    def least_bits(self, model_dtype: torch.dtype) -> float:
        """Bits of a weight below which no layer is stored."""
        return 1.0

    holds_mixed: ClassVar[bool] = False
    """Whether each layer is described by itself, so that they may differ in width."""

    def holds(self, storage: StorageSpec) -> bool:
        """Whether it has a place for the representation at all. A codec says otherwise if it
        has none for some kinds, or one for what a model does at runtime."""
        return not storage.runtime and (self.holds_mixed or not storage.mixed)

    def check(self, name: str, shape: tuple[int, int], storage: StorageSpec) -> None:  # noqa: B027 - optional
        """Refuse, before any work is done, a layer of `shape` (out, in) and a representation that
        the codec `holds`; any shape will do unless a codec says otherwise.

        Raises:
            InputError: it does not fit; the message names the layer and what would.
        """

    def check_layout(self, name: str, *, transposed: bool) -> None:  # noqa: B027 - optional
        """Refuse a layer whose model keeps it as [in, out] (`Target.transposed`), where readers
        would not know.

        Raises:
            InputError: naming the layer and what would do.
        """

    @abstractmethod
    def encode(
        self, name: str, layer: QuantizedLinear, dtype: torch.dtype
    ) -> dict[str, Shaped[Tensor, "..."]]:
        """The tensors that take the place of the weight of `name`, by their names under that
        module, in a model of `dtype`.

        Raises:
            InputError: the codec cannot hold this representation, shape or scale.
        """


class PackedCodec(Codec, Generic[Description]):
    """A codec whose tensors are not weights yet, and so needs an inverse."""

    def check_layout(self, name: str, *, transposed: bool) -> None:
        if transposed:
            raise InputError(
                f"{self.name} packs nn.Linear layers, and {name} is a transposed Conv1D, which its "
                "readers do not unpack; use --format dequantized"
            )

    @abstractmethod
    def decode(
        self, name: str, parts: Mapping[str, Shaped[Tensor, "..."]], description: Description
    ) -> Float[Tensor, "out in"]:
        """The weight of `name` in float32 from what `encode` gave.

        Raises:
            InputError: the tensors are damaged.
        """

    def unpadded(
        self, weight: Float[Tensor, "out in"], shape: tuple[int, ...]
    ) -> Float[Tensor, "rows columns"]:
        """What `decode` gave, without the rows and columns that the layout adds to a weight of
        `shape`: all of it unless a codec says otherwise."""
        return weight
