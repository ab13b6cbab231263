"""What a container is given to write: the original tensors and what replaces them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.formats.codec import Codec
from q2n.layers.by_name import bits_per_weight
from q2n.layers.quantized import QuantizedLinear
from q2n.models.expert_parts import ExpertPart
from q2n.models.experts import taken_apart
from q2n.models.model_source import ModelSource
from q2n.models.targets import Target, targets_in
from q2n.models.tensor_names import with_prefix


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """A model, some of its linears quantized."""

    source: ModelSource
    """The original tensors, by the model's own names."""
    layers: Mapping[str, QuantizedLinear]
    """Module name (without ".weight") -> quantized linear. May load lazily, a block at a time
    (`StoredByName`)."""
    norm_weights: Mapping[str, Shaped[Tensor, "..."]]
    """Norm weights and what else is not quantized, by tensor name, that take the place of the
    original ones."""

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The model's modules."""
        return self.source.skeleton()

    @cached_property
    def replaced(self) -> dict[str, str]:
        """Tensor name -> module name of every weight that is replaced. Iterates over the names of
        `layers` only: looking into it may load a block.

        Raises:
            InputError: the model has no such tensor.
        """
        replaced = {f"{module}.weight": module for module in self.layers}
        unknown = sorted(replaced.keys() - set(self.source.names()))
        if unknown:
            raise InputError(f"{self.source.label} has no tensor {unknown[0]!r} to replace")
        return replaced

    @cached_property
    def targets(self) -> dict[str, Target]:
        """Every matrix that could be quantized, by module name."""
        return targets_in(self.skeleton)

    @property
    def left_mixtures(self) -> dict[str, dict[str, ExpertPart]]:
        """As `taken_apart`, of the mixtures that have no quantized expert."""
        fused = taken_apart(self.skeleton)
        packed = {
            key.rpartition(".")[0]
            for key, parts in fused.items()
            if not self.replaced.keys().isdisjoint(parts)
        }
        return {key: parts for key, parts in fused.items() if key.rpartition(".")[0] not in packed}

    @cached_property
    def file_names(self) -> dict[str, str]:
        """Every tensor: name in the model -> name in the files, that of the original's."""
        keys = {name: self.source.source_key(name) for name in self.source.names()}
        return with_prefix(self.skeleton, keys)

    def file_module(self, module: str) -> str:
        """Under which name the files hold the tensors of a linear: that of its original weight,
        so that readers rename them as they rename the weight."""
        weight = f"{module}.weight"
        key = self.file_names.get(weight, weight)  # a tied head has no weight of its own
        return key.removesuffix(".weight") if key.endswith(".weight") else module

    @cached_property
    def in_parts(self) -> dict[str, tuple[str, ...]]:
        """Tensors that are written as the original checkpoint keeps them, in other parts than the
        model does (`ModelSource.merges`): name -> what is written in its place. That is all that
        comes of the same parts for the first of their names, nothing for the others."""
        changed = self.replaced.keys() | self.norm_weights.keys()
        return {
            name: keys if name == names[0] else ()
            for keys, names in self.source.merges.items()
            if changed.isdisjoint(names)
            for name in names
        }

    def part(self, key: str, name: str) -> Shaped[Tensor, "..."]:
        """A part of a tensor, as it is written."""
        return self.source.stored(key).to(self.source.dtype_of(name))

    def laid_out(
        self, module: str, part: str, value: Shaped[Tensor, "..."]
    ) -> Shaped[Tensor, "..."]:
        """A tensor of a quantized linear as the model keeps it: its dense weight transposed or
        not."""
        dense = part == "weight" and value.is_floating_point()  # MLX calls codes so too
        return self.targets[module].stored(value).contiguous() if dense else value

    def other_tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """A tensor that no quantized linear replaces, as it is written.

        Raises:
            NumericalError: it is NaN or Inf in the model's dtype.
        """
        changed = self.norm_weights.get(name)
        return self.source.in_model_dtype(name) if changed is None else changed

    def quantized_bytes(self, codec: Codec) -> float:
        """About the bytes of the quantized linears: of those of one width (whole bits per weight),
        judged by what the first takes."""
        weights: dict[int, int] = {}
        first: dict[int, str] = {}
        for name, module in self.replaced.items():
            width = round(bits_per_weight(self.layers, module))
            first.setdefault(width, module)
            weights[width] = weights.get(width, 0) + self.skeleton.get_parameter(name).numel()
        rates = {width: self._bytes_per_weight(module, codec) for width, module in first.items()}
        return sum((weights[width] * rate for width, rate in rates.items()), 0.0)

    def _bytes_per_weight(self, module: str, codec: Codec) -> float:
        stored = codec.encode(module, self.layers[module], self.source.dtype).values()
        numel = self.skeleton.get_parameter(f"{module}.weight").numel()
        return sum(x.numel() * x.element_size() for x in stored) / numel
