"""What the two public packed formats share: they hold uniform grids, one scheme a model.

scale * (code - zero), codes of b bits, a scale and a zero point for each group of
consecutive inputs. Both describe the scheme once, in config.json, so all layers must agree.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.formats.format import PackedFormat, PackedLayer, StoredLayer
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.layers.uniform import UniformLinear, UniformStorage


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The grid that every quantized layer of a model shares."""

    bits: int
    group_size: int
    """-1: one group a row."""
    symmetric: bool


class UniformFormat(PackedFormat):
    """A format for uniform grids."""

    parts: ClassVar[tuple[str, ...]]
    """Names under the module of the tensors that replace its weight; the first always exists."""

    def holds(self, storage: StorageSpec) -> bool:
        return isinstance(storage, UniformStorage) and super().holds(storage)

    def check(self, name: str, shape: tuple[int, int], storage: StorageSpec) -> None:
        assert isinstance(storage, UniformStorage)
        self.check_grid(name, shape, bits=storage.bits, group_size=storage.group_size)

    @abstractmethod
    def check_grid(self, name: str, shape: tuple[int, int], *, bits: int, group_size: int) -> None:
        """`check` for the grid of a layer; `group_size` -1 means one group a row."""

    def affine(self, name: str, layer: QuantizedLinear) -> UniformLinear:
        """The layer, if this format can hold it.

        Raises:
            InputError: another representation, or a shape that `check` refuses.
        """
        if not isinstance(layer, UniformLinear):
            raise InputError(
                f"{self.name} cannot hold {name}: its representation is {layer.kind!r}, and the "
                "format has uniform grids only; write it with --format native"
            )
        self.check_grid(name, layer.shape, bits=layer.bits, group_size=layer.group_size)
        return layer

    def scheme(self, layers: Mapping[str, StoredLayer]) -> Scheme:
        """The scheme of all layers.

        Raises:
            InputError: the layers differ in it; two that do are named.
        """
        per_channel = all(x.metadata["group_size"] == x.shape[1] for x in layers.values())
        found: dict[Scheme, str] = {}
        for name, layer in layers.items():
            scheme = Scheme(
                bits=layer.metadata["bits"],
                group_size=-1 if per_channel else layer.metadata["group_size"],
                symmetric=layer.metadata["symmetric"],
            )
            found.setdefault(scheme, name)
        if len(found) > 1:
            (one, first), (two, second) = list(found.items())[:2]
            raise InputError(
                f"{self.name} describes one grid for the whole model, but {first} has {one} and "
                f"{second} has {two}; use the same bits and group size, or --format native"
            )
        return next(iter(found))

    def packed_layers(
        self, keys: Iterable[str], config: Mapping[str, Any]
    ) -> dict[str, PackedLayer]:
        keys = list(keys)
        known, first = set(keys), f".{self.parts[0]}"
        modules = [key.removesuffix(first) for key in keys if key.endswith(first)]
        return {
            module: PackedLayer(
                parts=tuple(part for part in self.parts if f"{module}.{part}" in known),
                dense=lambda parts: self.dense(parts, config),
            )
            for module in modules
        }

    @abstractmethod
    def dense(
        self, parts: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> Float[Tensor, "out in"]:
        """The inverse of `tensors`: the weight in float32 from one layer's stored parts (by the
        names in `parts`) and the quantization config.

        Raises:
            InputError: the file is of a variant that is not read here.
        """


def stored_scale(
    name: str, scale: Float[Tensor, "out groups"], dtype: torch.dtype
) -> Float[Tensor, "out groups"]:
    """Scales in the dtype of the file.

    Raises:
        InputError: `dtype` cannot hold one: it would become infinite or zero.
    """
    stored = scale.to(dtype)
    if not torch.isfinite(stored).all() or bool(((stored == 0) & (scale != 0)).any()):
        low, high = scale.abs().min().item(), scale.abs().max().item()
        raise InputError(
            f"{name}: its scales, {low:.3g} to {high:.3g}, leave the range of {dtype}, in which "
            "this format stores them; use compressed-tensors with a wider --dtype"
        )
    return stored
