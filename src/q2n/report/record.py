"""The record of a quantized checkpoint: `q2n.json`.

It holds everything the result depends on, what each layer came to, and the totals; with the
same settings and input it is the same bytes. Times go to `q2n_timings.json`, which is not.
"""

from collections.abc import Iterable, Mapping
from typing import Any

RECORD_FILE = "q2n.json"
TIMINGS_FILE = "q2n_timings.json"


def build_record(
    fingerprint: Mapping[str, Any],
    labels: Mapping[str, Any],
    blocks: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """The record of a finished or interrupted run: what it depends on (`fingerprint`), what
    model and text are called (`labels`), and the facts that its blocks were stored with."""
    blocks = list(blocks)
    layers = {
        name: {
            "shape": described["shape"],
            "bits_per_weight": described["bits_per_weight"],
            **{key: value for key, value in described["record"].items() if not _is_time(key)},
        }
        for facts in blocks
        for name, described in facts["layers"].items()
    }
    return {
        "settings": {**labels, **fingerprint},
        "layers": layers,
        "left_in_full_precision": [name for facts in blocks for name in facts["never_called"]],
        "bits_per_weight": mean_bits(layers),
    }


def build_timings(blocks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds by block and by layer."""
    blocks = list(blocks)
    return {
        "quantization_seconds": sum(facts["seconds"] for facts in blocks),
        "blocks": {facts["block"]: facts["seconds"] for facts in blocks},
        "layers": {
            name: {key: value for key, value in described["record"].items() if _is_time(key)}
            for facts in blocks
            for name, described in facts["layers"].items()
        },
    }


def mean_bits(layers: Mapping[str, Mapping[str, Any]]) -> float:
    """Stored bits a weight over all quantized linears; 0 where there are none."""
    weights = [rows * columns for rows, columns in (layer["shape"] for layer in layers.values())]
    stored = sum(
        count * layer["bits_per_weight"]
        for count, layer in zip(weights, layers.values(), strict=True)
    )
    return stored / sum(weights) if weights else 0.0


def _is_time(key: str) -> bool:
    return key.endswith("seconds")
