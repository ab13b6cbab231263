"""q2n's own layout: every representation as it is, its small whole numbers packed.

A quantized linear is stored as its own tensors (`QuantizedLinear.tensors`), each under its name.
One whose entries are small whole numbers of b bits (`widths`) becomes one bitstream over all its
entries in row-major order, int32 [ceil(entries b / 32)]: only its last word is padded, so that
neither short rows nor a zero point a row waste a word each. The others are stored as they are.

config.json says what the tensors were, so that nothing here knows a single representation: kind,
metadata, and shape, dtype and bits of each tensor, once for all layers that agree in them.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from q2n.errors import InputError
from q2n.formats.format import PackedFormat, PackedLayer, StoredLayer, StoredTensor
from q2n.formats.packing import pack_all, unpack_all, word_count
from q2n.layers import REPRESENTATIONS
from q2n.layers.quantized import QuantizedLinear, StorageSpec

VERSION = 2
"""Of the layout. A reader refuses any other."""


class Native(PackedFormat):
    """Any representation, packed."""

    name = "native"
    quant_method = "q2n"

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        return model_dtype

    def holds(self, storage: StorageSpec) -> bool:
        return True

    def tensors(self, name: str, layer: QuantizedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
        stored = StoredLayer.of(layer).tensors
        return {f"{name}.{part}": to_file(x, stored[part]) for part, x in layer.tensors().items()}

    def quantization_config(
        self, layers: Mapping[str, StoredLayer], unquantized: Sequence[str]
    ) -> dict[str, Any]:
        groups: dict[str, dict[str, Any]] = {}
        for name, layer in layers.items():
            described = _to_json(layer)
            group = groups.setdefault(json.dumps(described), {**described, "layers": []})
            group["layers"].append(name)
        return {
            "quant_method": self.quant_method,
            "version": VERSION,
            "layer_groups": list(groups.values()),
            "modules_not_converted": list(unquantized),
        }

    def packed_layers(
        self, keys: Iterable[str], config: Mapping[str, Any]
    ) -> dict[str, PackedLayer]:
        layers = described_layers(config)
        modules = dict.fromkeys(key.rpartition(".")[0] for key in keys)
        ordered = [name for name in modules if name in layers]
        ordered += sorted(layers.keys() - modules.keys())  # damaged: `dense` says what is missing
        return {
            name: PackedLayer(parts=tuple(layers[name].tensors), dense=_reader(name, layers[name]))
            for name in ordered
        }

    def loading_example(self, directory: Path) -> str:
        return (
            "# pip install q2n\n"
            "import q2n\n"
            "from transformers import AutoModelForCausalLM\n"
            "\n"
            f"model = AutoModelForCausalLM.from_pretrained({str(directory)!r})\n"
        )


def described_layers(config: Mapping[str, Any]) -> dict[str, StoredLayer]:
    """Every quantized linear of a checkpoint, from its quantization config.

    Raises:
        InputError: another version of the layout, a kind that is not known, or not that layout.
    """
    if config.get("version") != VERSION:
        raise InputError(
            f"version {config.get('version')!r} of the native layout is not read here, only "
            f"{VERSION}; another release of q2n wrote the checkpoint: use that one"
        )
    try:
        layers = {
            name: _from_json(group) for group in config["layer_groups"] for name in group["layers"]
        }
    except (KeyError, TypeError, AttributeError, ValueError) as cause:
        raise InputError(
            f"quantization_config in config.json is damaged ({type(cause).__name__}: {cause}); "
            "fetch it again"
        ) from cause
    unknown = {layer.kind for layer in layers.values()} - REPRESENTATIONS.keys()
    if unknown:
        raise InputError(
            f"layers of kind {min(unknown)!r} are not known here; there are: "
            f"{', '.join(REPRESENTATIONS)}. Another release of q2n wrote the checkpoint: use that"
        )
    return layers


def _reader(
    name: str, layer: StoredLayer
) -> Callable[[Mapping[str, Tensor]], Float[Tensor, "out in"]]:
    def dense(parts: Mapping[str, Tensor]) -> Tensor:
        require_parts(name, layer, {part: tuple(x.shape) for part, x in parts.items()})
        return rebuild(layer, parts).dequantize()

    return dense


def rebuild(layer: StoredLayer, parts: Mapping[str, Tensor]) -> QuantizedLinear:
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
        found, expected = shapes.get(part), file_shape(stored)
        if found != expected:
            what = "is missing" if found is None else f"has shape {found}, not {expected}"
            raise InputError(f"tensor {name}.{part} {what}; fetch the checkpoint again")


def to_file(tensor: Shaped[Tensor, "..."], stored: StoredTensor) -> Tensor:
    """A tensor as it is stored.

    Raises:
        ValueError: its entries are not the small whole numbers that the representation promises.
    """
    if stored.bits is None:
        return tensor
    if tensor.dtype not in (torch.uint8, torch.bool):
        raise ValueError(f"only uint8 and bool tensors are packed, not {tensor.dtype}")
    return pack_all(tensor.to(torch.uint8), stored.bits)


def from_file(tensor: Tensor, stored: StoredTensor) -> Shaped[Tensor, "..."]:
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


def _to_json(layer: StoredLayer) -> dict[str, Any]:
    return {
        "kind": layer.kind,
        "shape": list(layer.shape),
        "metadata": dict(layer.metadata),
        "tensors": {
            name: {
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                **({} if tensor.bits is None else {"bits": tensor.bits}),
            }
            for name, tensor in layer.tensors.items()
        },
    }


def _from_json(group: Mapping[str, Any]) -> StoredLayer:
    rows, columns = group["shape"]
    return StoredLayer(
        kind=group["kind"],
        shape=(rows, columns),
        metadata=group["metadata"],
        tensors={name: _tensor_from_json(tensor) for name, tensor in group["tensors"].items()},
    )


def _tensor_from_json(tensor: Mapping[str, Any]) -> StoredTensor:
    dtype, bits = getattr(torch, tensor["dtype"]), tensor.get("bits")
    if not isinstance(dtype, torch.dtype) or bits not in (None, *range(1, 9)):
        raise ValueError(f"a tensor of {tensor['dtype']} in {bits} bits")
    return StoredTensor(shape=tuple(tensor["shape"]), dtype=dtype, bits=bits)
