"""What the public packed formats share: they hold uniform grids.

scale * (code - zero), codes of b bits, a scale and a zero point for each group of
consecutive inputs. All describe the scheme in config.json: most of them once, so all layers must
agree.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from q2n.errors import InputError
from q2n.formats.codec import PackedCodec
from q2n.formats.hf_entry import PackedEntry, PackedLayer
from q2n.formats.stored import StoredLayer
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.layers.uniform import UniformLinear, UniformStorage
from q2n.linalg.finite import all_finite
from q2n.option_types import GroupSize, Range, check_fields


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The grid that every quantized layer of a model shares."""

    bits: Annotated[int, Range(low=2, high=8)]
    group_size: GroupSize
    """-1: one group per row."""
    symmetric: bool

    def __post_init__(self) -> None:
        check_fields(self)

    def groups(self, columns: int) -> int:
        """Groups of a row of so many columns."""
        return 1 if self.group_size == -1 else -(-columns // self.group_size)


class UniformCodec(PackedCodec[Scheme]):
    """A codec for uniform grids."""

    parts: ClassVar[tuple[str, ...]]
    """Names under the module of the tensors that replace its weight; the first always exists."""

    def holds(self, storage: StorageSpec) -> bool:
        return isinstance(storage, UniformStorage) and super().holds(storage)

    def check(self, name: str, shape: tuple[int, int], storage: StorageSpec) -> None:
        assert isinstance(storage, UniformStorage)
        self.check_grid(name, shape, bits=storage.bits, group_size=storage.group_size)

    @abstractmethod
    def check_grid(self, name: str, shape: tuple[int, int], *, bits: int, group_size: int) -> None:
        """`check` for the grid of a layer; `group_size` -1 means one group per row."""

    def uniform(self, name: str, layer: QuantizedLinear) -> UniformLinear:
        """The layer, if this codec can hold it.

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


class UniformEntry(PackedEntry[Scheme]):
    """The entry of such a codec in config.json."""

    codec: ClassVar[type[UniformCodec]]

    def schemes(self, layers: Mapping[str, StoredLayer]) -> dict[Scheme, list[str]]:
        """Each scheme with the layers that have it."""
        per_channel = all(x.metadata["group_size"] == x.shape[1] for x in layers.values())
        schemes: dict[Scheme, list[str]] = {}
        for name, layer in layers.items():
            scheme = Scheme(
                bits=layer.metadata["bits"],
                group_size=-1 if per_channel else layer.metadata["group_size"],
                symmetric=layer.metadata["symmetric"],
            )
            schemes.setdefault(scheme, []).append(name)
        return schemes

    def common_scheme(self, layers: Mapping[str, StoredLayer]) -> Scheme:
        """The scheme of all layers.

        Raises:
            InputError: the layers differ in it; two that do are named.
        """
        schemes = self.schemes(layers)
        if len(schemes) > 1:
            (one, [first, *_]), (two, [second, *_]) = list(schemes.items())[:2]
            raise InputError(
                f"{self.codec.name} describes one grid for the whole model, but {first} has {one} "
                f"and {second} has {two}; use the same bits and group size, or --format native"
            )
        return next(iter(schemes))

    @abstractmethod
    def described_scheme(self, config: Mapping[str, Any]) -> Scheme:
        """The scheme of a checkpoint, from its quantization config.

        Raises:
            InputError: the file is of a variant that is not read here.
        """

    def own_scheme(self, module: str, config: Mapping[str, Any]) -> Scheme | None:
        """That of a module by its name in the files, if it is another. Raises as
        `described_scheme`."""
        return None

    def packed_layers(
        self, keys: Mapping[str, str], config: Mapping[str, Any]
    ) -> dict[str, PackedLayer[Scheme]]:
        scheme, names = self.described_scheme(config), self.codec.parts
        first = f".{names[0]}"
        files = {
            x.removesuffix(first): keys[x].removesuffix(first) for x in keys if x.endswith(first)
        }
        return {
            module: PackedLayer(
                parts=tuple(part for part in names if f"{module}.{part}" in keys),
                description=self.own_scheme(file, config) or scheme,
            )
            for module, file in files.items()
        }


def require_tensors(
    name: str,
    parts: Mapping[str, Shaped[Tensor, "..."]],
    shapes: Mapping[str, tuple[tuple[int, ...], bool]],
) -> None:
    """Compare the tensors of a layer with what the other tensors and config.json make of them:
    the shape of each, and whether it holds floating-point numbers, which must be finite.

    Raises:
        InputError: one is missing or another one.
    """
    for part, (shape, floating) in shapes.items():
        tensor = parts.get(part)
        if tensor is None:
            what = "is missing"
        elif tuple(tensor.shape) != shape:
            what = f"has shape {tuple(tensor.shape)}, not {shape}"
        elif tensor.dtype != torch.int32 and not floating:
            what = f"has dtype {tensor.dtype}, not {torch.int32}"
        elif floating and not (tensor.is_floating_point() and all_finite(tensor)):
            what = "has NaN, Inf or no floating-point numbers"
        else:
            continue
        raise InputError(f"tensor {name}.{part} {what}; fetch the checkpoint again")


def stored_scale(
    name: str, scale: Float[Tensor, "out groups"], dtype: torch.dtype
) -> Float[Tensor, "out groups"]:
    """Scales in the dtype of the file.

    Raises:
        InputError: `dtype` cannot hold one: it would become infinite or zero.
    """
    stored = scale.to(dtype)
    if not all_finite(stored) or bool(((stored == 0) & (scale != 0)).any()):
        low, high = scale.abs().min().item(), scale.abs().max().item()
        raise InputError(
            f"{name}: its scales, {low:.3g} to {high:.3g}, leave the range of {dtype}, in which "
            "this format stores them; use compressed-tensors with a wider --dtype"
        )
    return stored
