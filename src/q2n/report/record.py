"""The record of a quantized checkpoint: `q2n.json`.

It holds everything the result depends on, what each layer came to, and the totals; with the
same settings and input it is the same bytes. Times go to `q2n_timings.json`, which is not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from q2n.report.block_record import BlockRecord, LayerRecord
from q2n.report.notes import notes_of

RECORD_FILE = "q2n.json"
TIMINGS_FILE = "q2n_timings.json"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A finished or interrupted run."""

    settings: Mapping[str, Any]
    """What model and text are called, and everything that the result depends on."""
    layers: Mapping[str, LayerRecord]
    left_in_full_precision: Sequence[str]
    """Linears that no calibration token reached."""
    ignored: Sequence[str]
    """Linears that the settings leave in full precision."""
    notes: Sequence[str] = ()
    """What a user must know of the result besides numbers, in sentences."""
    rest: Mapping[str, Any] = field(default_factory=dict)
    """What is known afterwards (`over_all_weights`, `perplexity`,
    `fidelity`) or how far the run is
    (`finished_blocks`): JSON values by name, after everything else."""

    @classmethod
    def of(
        cls,
        fingerprint: Mapping[str, Any],
        labels: Mapping[str, Any],
        blocks: Iterable[BlockRecord],
        *,
        notes: Sequence[str] = (),
        **rest: Any,
    ) -> Self:
        """A run from what it depends on, what its model and text are called, its blocks, and
        what was noted before the first of them."""
        blocks = list(blocks)
        return cls(
            settings={**labels, **fingerprint},
            layers={name: layer for block in blocks for name, layer in block.layers.items()},
            left_in_full_precision=[name for block in blocks for name in block.never_called],
            ignored=[name for block in blocks for name in block.ignored],
            notes=[*notes, *notes_of(blocks)],
            rest=rest,
        )

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        own = {field.name for field in fields(cls)} | {"bits_per_weight"}
        layers = record["layers"].items()
        return cls(
            settings=record["settings"],
            layers={name: LayerRecord.from_json(described) for name, described in layers},
            left_in_full_precision=record["left_in_full_precision"],
            ignored=record["ignored"],
            notes=record["notes"],
            rest={key: value for key, value in record.items() if key not in own},
        )

    def to_json(self) -> dict[str, Any]:
        """What `q2n.json` holds."""
        return {
            "settings": dict(self.settings),
            "layers": {name: layer.to_json() for name, layer in self.layers.items()},
            "left_in_full_precision": list(self.left_in_full_precision),
            "ignored": list(self.ignored),
            "notes": list(self.notes),
            "bits_per_weight": self.bits_per_weight,
            **self.rest,
        }

    @property
    def bits_per_weight(self) -> float:
        """Of all quantized linears together; 0 where there are none."""
        weights = sum(layer.weights for layer in self.layers.values())
        stored = sum(layer.weights * layer.bits_per_weight for layer in self.layers.values())
        return stored / weights if weights else 0.0


def timings(blocks: Iterable[BlockRecord], before: Mapping[str, float]) -> dict[str, Any]:
    """What `q2n_timings.json` holds: seconds of all, of what came `before` the first block (by what
    it is), by block and by layer."""
    blocks = list(blocks)
    return {
        "quantization_seconds": sum(before.values()) + sum(block.seconds for block in blocks),
        "before": dict(before),
        "blocks": {block.block: block.seconds for block in blocks},
        "layers": {
            name: dict(times) for block in blocks for name, times in block.layer_seconds.items()
        },
    }
