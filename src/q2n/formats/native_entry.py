"""The native layout in config.json: what the tensors of each quantized linear were.

Kind, metadata, and shape, dtype and bits of each tensor, once for all layers that agree in them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from q2n.errors import InputError, reason_of
from q2n.formats.described import require_consistent
from q2n.formats.hf_entry import PackedEntry, PackedLayer, others
from q2n.formats.runtime import RUNTIME
from q2n.formats.stored import StoredLayer, StoredTensor
from q2n.formats.table_grid import WIDTHS
from q2n.layers import REPRESENTATIONS
from q2n.option_types import shown

VERSION = 3
"""Of the layout. A reader refuses any other."""
COPIED = "copied"
"""The entry that names tensors of the file that are no part of the model."""
_MAY_BE_LEFT_OUT = ("modules_not_converted", RUNTIME, COPIED)
_ENTRIES = ("quant_method", "version", "layer_groups", *_MAY_BE_LEFT_OUT)


class NativeEntry(PackedEntry[StoredLayer]):
    """Groups of layers that differ in nothing but their numbers."""

    quant_method = "q2n"
    outside_bits = WIDTHS
    single_experts = "as model"
    merges_experts = False

    def quantization_config(
        self,
        layers: Mapping[str, StoredLayer],
        modules: Mapping[str, str],
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
            "modules_not_converted": list(others(layers, modules)),
            **({COPIED: list(copied)} if copied else {}),
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

    def unused(self, config: Mapping[str, Any]) -> set[str]:
        return set(config.get(COPIED, ()))

    def loading_example(self, directory: Path) -> str:
        return (
            "# pip install q2n\n"
            "import q2n  # teaches transformers the format; without it weights are random\n"
            "from transformers import AutoModelForCausalLM\n"
            "\n"
            f"model = AutoModelForCausalLM.from_pretrained({str(directory)!r})\n"
        )


def described_layers(config: Mapping[str, Any]) -> dict[str, StoredLayer]:
    """Every quantized linear of a checkpoint, from its quantization config. Nothing is believed:
    each description has been held against its representation (described.py).

    Raises:
        InputError: another version of the layout, a kind that is not known, or not that layout.
    """
    if config.get("version") != VERSION:
        raise InputError(
            f"version {shown(config.get('version'))} of the native layout is not read here, only "
            f"{VERSION}; another release of q2n wrote the checkpoint: use that one"
        )
    try:
        _require_entries("quantization_config", config, _ENTRIES, _MAY_BE_LEFT_OUT)
        for entry in ("modules_not_converted", COPIED):
            _texts(entry, config.get(entry, []))
        if not isinstance(config["layer_groups"], list):
            raise ValueError(f"layer_groups is {shown(config['layer_groups'])}")
        groups = [_from_json(group) for group in config["layer_groups"]]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as cause:
        raise InputError(
            f"quantization_config in config.json is damaged ({reason_of(cause)}); fetch it again, "
            "or use the release of q2n that wrote it"
        ) from cause
    return _by_name(groups)


def _by_name(groups: Iterable[tuple[StoredLayer, list[str]]]) -> dict[str, StoredLayer]:
    layers: dict[str, StoredLayer] = {}
    for layer, names in groups:
        for name in names:
            if name in layers:
                raise InputError(
                    f"quantization_config in config.json describes {shown(name)} twice; fetch it "
                    "again"
                )
            layers[name] = layer
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


def _from_json(group: Mapping[str, Any]) -> tuple[StoredLayer, list[str]]:
    """A group and the names of its layers."""
    _require_entries("a group of layers", group, ("layers", "kind", "shape", "metadata", "tensors"))
    kind, metadata = group["kind"], group["metadata"]
    if not isinstance(kind, str) or kind not in REPRESENTATIONS:
        raise ValueError(
            f"layers of kind {shown(kind)} are not known here; there are: "
            f"{', '.join(REPRESENTATIONS)}"
        )
    rows, columns = _sizes(group["shape"])
    layer = StoredLayer(
        kind=kind,
        shape=(rows, columns),
        metadata=dict(metadata),
        tensors={name: _tensor_from_json(name, x) for name, x in group["tensors"].items()},
    )
    require_consistent(layer)
    return layer, _texts("layers", group["layers"])


def _tensor_from_json(name: str, tensor: Mapping[str, Any]) -> StoredTensor:
    _require_entries(name, tensor, ("shape", "dtype", "bits"), ("bits",))
    dtype, bits = getattr(torch, str(tensor["dtype"]), None), tensor.get("bits")
    if not isinstance(dtype, torch.dtype) or bits not in (None, *range(1, 9)):
        raise ValueError(f"a tensor of {shown(tensor['dtype'])} in {shown(bits)} bits")
    return StoredTensor(shape=_sizes(tensor["shape"]), dtype=dtype, bits=bits)


def _sizes(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"a shape {shown(shape)}")
    return tuple(shape)


def _texts(entry: str, names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{entry} is {shown(names)}")
    return names


def _require_entries(
    what: str, entries: Any, known: Iterable[str], optional: Iterable[str] = ()
) -> None:
    """Refuse what has other entries than these."""
    if not isinstance(entries, Mapping):
        raise ValueError(f"{what} is {shown(entries)}")
    missing, unknown = set(known) - set(optional) - entries.keys(), entries.keys() - set(known)
    if missing or unknown:
        lacks = f"no {', '.join(sorted(missing))}"
        lacks = lacks if missing else f"an entry {shown(min(unknown))}, which is not known here"
        raise ValueError(f"{what} has {lacks}")
