"""A format, as the user names it: a codec in a container."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Shaped
from torch import Tensor

from q2n.formats.codec import Codec
from q2n.formats.container import Container
from q2n.formats.quantized_model import QuantizedModel
from q2n.layers.quantized import QuantizedLinear
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

    def storing_outside(self, name: str) -> "Format":
        """The same, with what no method quantizes in a type of this name.

        Raises:
            InputError: the container has no such choice.
        """
        return replace(self, container=self.container.storing_outside(name))

    def with_outside_bits(self, bits: int) -> "Format":
        """The same, with embeddings and head in so many bits, which its container can hold."""
        return replace(self, container=self.container.with_outside_bits(bits))

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
