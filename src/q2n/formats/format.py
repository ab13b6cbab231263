"""A format, as the user names it: a codec in a container."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Shaped
from torch import Tensor

from q2n.errors import InputError
from q2n.formats.codec import Codec
from q2n.formats.container import Container
from q2n.formats.quantized_model import QuantizedModel
from q2n.grids.per_token import TokenGrid
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.models.model_source import ModelSource


@dataclass(frozen=True)
class Format:
    """What a model is written as."""

    name: str
    """On the command line."""
    codec: Codec
    """How a quantized linear becomes tensors."""
    container: Container
    """How tensors become a checkpoint."""
    rounding: "Callable[[Format, StorageSpec, TokenGrid], Format] | None" = None
    """The same for linears that round their inputs; None: its readers do not."""

    def storing_outside(self, name: str) -> "Format":
        """The same, with what no method quantizes in a type of this name.

        Raises:
            InputError: the container has no such choice.
        """
        return replace(self, container=self.container.storing_outside(name))

    def with_outside_bits(self, bits: int) -> "Format":
        """The same, with embeddings and head in so many bits, which its container can hold."""
        return replace(self, container=self.container.with_outside_bits(bits))

    def rounding_inputs(self, storage: StorageSpec, grid: TokenGrid) -> "Format":
        """The same for a model whose quantized linears round their inputs on this grid.

        Raises:
            InputError: its readers do not, or not so.
        """
        if self.rounding is None:
            raise InputError(
                f"readers of {self.name} do not round the inputs of linears; leave "
                "activation_bits out, or use --format compressed-tensors or native"
            )
        return self.rounding(self, storage, grid)

    def write(
        self,
        directory: Path,
        source: ModelSource,
        layers: Mapping[str, QuantizedLinear],
        complete: Callable[[Path, int], None] | None = None,
        *,
        norm_weights: Mapping[str, Shaped[Tensor, "..."]] | None = None,
    ) -> int:
        """Write a checkpoint; returns the bytes of all its tensors.

        The arguments and what is raised: `QuantizedModel` and `Container.write`.
        """
        model = QuantizedModel(source=source, layers=layers, norm_weights=norm_weights or {})
        return self.container.write(directory, model, self.codec, complete)
