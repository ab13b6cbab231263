"""The record of a quantized checkpoint: `q2n.json`.

It holds everything the result depends on, what each layer came to, and the totals; with the
same settings and input it is the same bytes. Times go to `q2n_timings.json`, which is not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from q2n.refit.loss_change import rose

RECORD_FILE = "q2n.json"
TIMINGS_FILE = "q2n_timings.json"


_FITS = ("fit_loss", "refit_loss")
"""What a block's facts have of gradient steps on it: a loss before and after them."""
_MODEL_FIT = "model_refit_loss"
"""The same of steps on the whole model, among the facts of the first block."""
RARE = 0.1
"""Of an even share of the tokens: what an expert below it saw is worth a note."""


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """What one quantized linear came to."""

    shape: tuple[int, int]
    """(out, in)."""
    bits_per_weight: float
    """Everything stored, over the number of weights."""
    notes: Mapping[str, Any]
    """What the method and its wrappers noted on the way, by name: JSON values. Which there
    are depends on them (`QuantizedLinear.record`)."""

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        own = ("shape", "bits_per_weight")
        rows, columns = described["shape"]
        return cls(
            shape=(rows, columns),
            bits_per_weight=described["bits_per_weight"],
            notes={key: value for key, value in described.items() if key not in own},
        )

    def to_json(self) -> dict[str, Any]:
        """Shape and bits first, then everything else side by side."""
        return {"shape": list(self.shape), "bits_per_weight": self.bits_per_weight, **self.notes}

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def dead_columns(self) -> int:
        """Columns whose input was always 0 on the calibration text; 0 without any."""
        return self.notes.get("dead_columns", 0)

    @property
    def routed_tokens(self) -> int | None:
        """Of an expert: the calibration tokens that its router sent it; None for other layers."""
        return self.notes.get("routed_tokens")

    @property
    def output_error(self) -> float | None:
        """|(W - Q) X|^2 / |W X|^2, a ratio of squares on the calibration text; None without any."""
        return self.notes.get("output_error")


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """What one decoder block came to, with the times."""

    block: str
    seconds: float
    never_called: Sequence[str]
    """Linears that no calibration token reached: left in full precision."""
    ignored: Sequence[str]
    """Linears that the settings leave in full precision."""
    layers: Mapping[str, LayerRecord]
    layer_seconds: Mapping[str, Mapping[str, float]]
    """Layer -> what took how long."""
    not_scaled: Sequence[str] = ()
    """Linears to whose inputs a rewrite has given no scale, for nothing could take it."""
    taken_back: bool = False
    """Whether gradient steps on it made their loss worse, and were given up."""
    model_taken_back: bool = False
    """The same of steps on the whole model; said by the first block."""

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """From what the run's store keeps beside the tensors of a block."""
        layers, times = {}, {}
        for name, described in facts["layers"].items():
            entries = described["record"]
            times[name] = {key: entries[key] for key in entries if _is_time(key)}
            layers[name] = LayerRecord(
                shape=tuple(described["shape"]),
                bits_per_weight=described["bits_per_weight"],
                notes={key: entries[key] for key in entries if not _is_time(key)},
            )
        return cls(
            block=facts["block"],
            seconds=facts["seconds"],
            never_called=facts["never_called"],
            ignored=facts["ignored"],
            layers=layers,
            layer_seconds=times,
            not_scaled=facts.get("not_scaled", ()),
            taken_back=any(_rose(facts, fit) for fit in _FITS),
            model_taken_back=_rose(facts, _MODEL_FIT),
        )


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


def notes_of(blocks: Iterable[BlockRecord]) -> list[str]:
    """What a user must know of quantized blocks, in sentences."""
    blocks = list(blocks)
    return [
        *_never_called(blocks),
        *_not_scaled(blocks),
        *_rare_experts(blocks),
        *_without_input(blocks),
        *_fell_back(blocks),
        *_taken_back(blocks),
    ]


def _never_called(blocks: Sequence[BlockRecord]) -> list[str]:
    names = [name for block in blocks for name in block.never_called]
    if not names:
        return []
    return [
        f"{len(names)} linears stay in full precision, for no calibration token reached "
        f"them: {_first_few(names)}"
    ]


def _not_scaled(blocks: Sequence[BlockRecord]) -> list[str]:
    names = [name for block in blocks for name in block.not_scaled]
    if not names:
        return []
    return [
        f"The rewrite scales no input of {len(names)} linears, for nothing before them can take a "
        f"scale: {_first_few(names)}"
    ]


def _rare_experts(blocks: Sequence[BlockRecord]) -> list[str]:
    """Experts that fewer tokens reached than a tenth of the mean over their mixture."""
    mixtures: dict[str, dict[str, int]] = {}
    for block in blocks:
        for name, layer in block.layers.items():
            if layer.routed_tokens is not None:
                expert = name.rpartition(".")[0]
                mixture = mixtures.setdefault(expert.rpartition(".")[0], {})
                mixture[expert] = max(layer.routed_tokens, mixture.get(expert, 0))
    rare = {
        expert: tokens
        for mixture in mixtures.values()
        for expert, tokens in mixture.items()
        if tokens < RARE * sum(mixture.values()) / len(mixture)
    }
    if not rare:
        return []
    least = _first_few([f"{name} {rare[name]}" for name in sorted(rare, key=rare.__getitem__)])
    return [
        f"{len(rare)} experts saw less than a tenth of an even share of the calibration tokens, "
        "and their statistics lean on those of all tokens (expert_shrinkage), fewest first: "
        f"{least}"
    ]


def _without_input(blocks: Sequence[BlockRecord]) -> list[str]:
    layers = {name: layer for block in blocks for name, layer in block.layers.items()}
    idle = [name for name, layer in layers.items() if layer.dead_columns == layer.shape[1]]
    counts = [layer.dead_columns for name, layer in layers.items() if name not in idle]
    notes = []
    if idle:
        notes.append(
            f"{len(idle)} linears got nothing but zeros as input on the calibration text, and "
            f"are rounded without feedback or correction: {_first_few(idle)}"
        )
    if any(counts):
        notes.append(
            f"{sum(counts)} input columns in {sum(map(bool, counts))} layers got no input on the "
            "calibration text; their weights are rounded without feedback"
        )
    return notes


def _fell_back(blocks: Sequence[BlockRecord]) -> list[str]:
    others: dict[str, list[str]] = {}
    for block in blocks:
        for name, layer in block.layers.items():
            if "fell_back_on" in layer.notes:
                others.setdefault(layer.notes["fell_back_on"], []).append(name)
    return [
        f"{len(names)} linears are stored in {kind}, for their width is not a multiple of the 256 "
        f"columns of a block of the type asked for: {_first_few(names)}"
        for kind, names in others.items()
    ]


def _taken_back(blocks: Sequence[BlockRecord]) -> list[str]:
    names = [block.block for block in blocks if block.taken_back]
    notes = []
    if names:
        notes.append(
            f"Gradient steps on {len(names)} blocks made their loss on the calibration text worse "
            f"and were given up: {_first_few(names)}"
        )
    if any(block.model_taken_back for block in blocks):
        notes.append(
            "Gradient steps on the whole model made its loss on the calibration text worse and "
            "were given up"
        )
    return notes


def _rose(facts: Mapping[str, Any], fit: str) -> bool:
    return fit in facts and rose(*facts[fit])


def _first_few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{', ..' if len(names) > 5 else ''}"


def timings(blocks: Iterable[BlockRecord]) -> dict[str, Any]:
    """What `q2n_timings.json` holds: seconds by block and by layer."""
    blocks = list(blocks)
    return {
        "quantization_seconds": sum(block.seconds for block in blocks),
        "blocks": {block.block: block.seconds for block in blocks},
        "layers": {
            name: dict(times) for block in blocks for name, times in block.layer_seconds.items()
        },
    }


def _is_time(key: str) -> bool:
    return key.endswith("seconds")
