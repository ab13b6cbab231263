"""The native layout in config.json: what the tensors of each quantized linear were.

Kind, metadata, and shape, dtype and bits of each tensor, once for all layers that agree in them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from q2n.errors import InputError
from q2n.formats.hf_entry import PackedEntry, PackedLayer
from q2n.formats.stored import StoredLayer, StoredTensor
from q2n.layers import REPRESENTATIONS

VERSION = 2
"""Of the layout. A reader refuses any other."""


class NativeEntry(PackedEntry[StoredLayer]):
    """Groups of layers that differ in nothing but their numbers."""

    quant_method = "q2n"

    def quantization_config(
        self,
        layers: Mapping[str, StoredLayer],
        unquantized: Mapping[str, str],
        copied: Sequence[str] = (),
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
            **({"copied": list(copied)} if copied else {}),
        }

    def packed_layers(
        self, keys: Iterable[str], config: Mapping[str, Any]
    ) -> dict[str, PackedLayer[StoredLayer]]:
        layers = described_layers(config)
        modules = dict.fromkeys(key.rpartition(".")[0] for key in keys)
        ordered = [name for name in modules if name in layers]
        ordered += sorted(layers.keys() - modules.keys())  # damaged: `decode` says what is missing
        return {
            name: PackedLayer(parts=tuple(layers[name].tensors), description=layers[name])
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
