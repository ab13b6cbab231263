"""What the quantized linears of one decoder block came to: the parts of a run's record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from q2n.refit.loss_change import rose

_FITS = ("fit_loss", "refit_loss")
"""What a block's facts have of gradient steps on it: a loss before and after them."""
_MODEL_FIT = "model_refit_loss"
"""The same of steps on the whole model, among the facts of the first block."""


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


def _rose(facts: Mapping[str, Any], fit: str) -> bool:
    return fit in facts and rose(*facts[fit])


def _is_time(key: str) -> bool:
    return key.endswith("seconds")
