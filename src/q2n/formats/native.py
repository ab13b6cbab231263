"""q2n's own layout: every representation as it is, its small whole numbers packed.

A quantized linear is stored as its own tensors (`QuantizedLinear.tensors`), each under its name.
One whose entries are small whole numbers of b bits (`widths`) becomes one bitstream over all its
entries in row-major order, int32 [ceil(entries b / 32)]: only its last word is padded, so that
neither short rows nor a zero point per row waste a word each. The others are stored as they are.

What the tensors were (`StoredLayer`) is all that is needed besides them, so that nothing here
knows a single representation.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from q2n.errors import InputError
from q2n.formats.codec import PackedCodec
from q2n.formats.packing import pack_all, unpack_all, word_count
from q2n.formats.stored import StoredLayer, StoredTensor
from q2n.layers import REPRESENTATIONS
from q2n.layers.quantized import QuantizedLinear, StorageSpec


class Native(PackedCodec[StoredLayer]):
    """Any representation, packed."""

    name = "native"

    def holds(self, storage: StorageSpec) -> bool:
        return True

    def encode(
        self, name: str, layer: QuantizedLinear, dtype: torch.dtype
    ) -> dict[str, Shaped[Tensor, "..."]]:
        stored = StoredLayer.of(layer).tensors
        return {part: to_file(tensor, stored[part]) for part, tensor in layer.tensors().items()}

    def decode(
        self, name: str, parts: Mapping[str, Shaped[Tensor, "..."]], description: StoredLayer
    ) -> Float[Tensor, "out in"]:
        require_parts(name, description, {part: tuple(x.shape) for part, x in parts.items()})
        return rebuild(description, parts).dequantize()


def rebuild(layer: StoredLayer, parts: Mapping[str, Shaped[Tensor, "..."]]) -> QuantizedLinear:
    """The quantized linear from the tensors of the file, by their names under the module."""
    tensors = {part: from_file(parts[part], stored) for part, stored in layer.tensors.items()}
    return REPRESENTATIONS[layer.kind].from_tensors(tensors, layer.metadata)


def require_parts(
    name: str, layer: StoredLayer, shapes: Mapping[str, tuple[int, ...] | None]
) -> None:
    """Compare the shapes of a layer's tensors in the file with what config.json says of them.

    Raises:
        InputError: one is missing or of another shape.
    """
    for part, stored in layer.tensors.items():
        shape, expected = shapes.get(part), file_shape(stored)
        if shape != expected:
            what = "is missing" if shape is None else f"has shape {shape}, not {expected}"
            raise InputError(f"tensor {name}.{part} {what}; fetch the checkpoint again")


def to_file(tensor: Shaped[Tensor, "..."], stored: StoredTensor) -> Shaped[Tensor, "..."]:
    """A tensor as it is stored.

    Raises:
        ValueError: its entries are not the small whole numbers that the representation promises.
    """
    if stored.bits is None:
        return tensor
    if tensor.dtype not in (torch.uint8, torch.bool):
        raise ValueError(f"only uint8 and bool tensors are packed, not {tensor.dtype}")
    return pack_all(tensor.to(torch.uint8), stored.bits)


def from_file(tensor: Shaped[Tensor, "..."], stored: StoredTensor) -> Shaped[Tensor, "..."]:
    """Inverse of `to_file`."""
    if stored.bits is None:
        return tensor
    return unpack_all(tensor, stored.bits, stored.shape).to(stored.dtype)


def file_shape(stored: StoredTensor) -> tuple[int, ...]:
    """The shape that `to_file` gives."""
    return stored.shape if stored.bits is None else (word_count(stored.numel, stored.bits),)


def file_dtype(stored: StoredTensor) -> torch.dtype:
    """The dtype that `to_file` gives."""
    return stored.dtype if stored.bits is None else torch.int32
