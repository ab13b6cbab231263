"""Quantized layers as tensors and JSON values, and as bytes: for the disk and for other ranks."""

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from q2n.layers import REPRESENTATIONS
from q2n.layers.quantized import QuantizedLinear

_LENGTH = 8
"""Bytes for the length of the JSON."""


def described(layers: Mapping[str, QuantizedLinear]) -> dict[str, dict[str, Any]]:
    """JSON values by full name: kind, metadata, bits_per_weight, shape and record."""
    return {
        name: {
            "kind": layer.kind,
            "metadata": layer.metadata(),
            "bits_per_weight": layer.bits_per_weight,
            "shape": list(layer.shape),
            "record": dict(layer.record),
        }
        for name, layer in layers.items()
    }


def stored_tensors(layers: Mapping[str, QuantizedLinear]) -> dict[str, Tensor]:
    """Their tensors as NAME:PART, on the CPU."""
    return {
        f"{name}:{part}": tensor.contiguous().cpu()
        for name, layer in layers.items()
        for part, tensor in layer.tensors().items()
    }


def rebuilt(
    descriptions: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> dict[str, QuantizedLinear]:
    """The layers of `described` and `stored_tensors`; other tensors may be among these."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.partition(":")
        parts.setdefault(name, {})[part] = tensor
    return {
        name: REPRESENTATIONS[values["kind"]]
        .from_tensors(parts.get(name, {}), values["metadata"])
        .with_record(**values["record"])
        for name, values in descriptions.items()
    }


def to_bytes(layers: Mapping[str, QuantizedLinear]) -> bytes:
    """All of them."""
    head = json.dumps(described(layers)).encode()
    return len(head).to_bytes(_LENGTH, "little") + head + save(stored_tensors(layers))


def from_bytes(data: bytes) -> dict[str, QuantizedLinear]:
    """Inverse of `to_bytes`."""
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    return rebuilt(json.loads(data[_LENGTH:end]), load(data[end:]))
