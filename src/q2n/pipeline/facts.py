"""What a run notes about itself and about each block, as it lies on disk (JSON)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from q2n.refit.loss_change import LossChange


@dataclass(frozen=True, kw_only=True)
class BlockFacts:
    """What is known of a finished block besides its layers."""

    block: str
    """Full name of the module."""
    seconds: float = 0.0
    """Of the run that this block took."""
    never_called: tuple[str, ...] = ()
    """Full names of layers that the text did not reach; they stay in full precision."""
    ignored: tuple[str, ...] = ()
    """Full names of layers that the settings leave in full precision."""
    not_scaled: tuple[str, ...] = ()
    """Full names of layers to quantize before which a rewrite found nothing that takes a scale."""
    fit_loss: LossChange | None = None
    """Of the fit of its ranges or factors that the method asks for, on all windows."""
    refit_loss: LossChange | None = None
    """Of the refit of this block, if there was one, on a few windows."""
    model_refit_loss: LossChange | None = None
    """Of the refit of the whole model; with the first block only."""

    @property
    def losses(self) -> dict[str, LossChange]:
        """Of the fits that there were, by the name of the field."""
        found = {
            "fit_loss": self.fit_loss,
            "refit_loss": self.refit_loss,
            "model_refit_loss": self.model_refit_loss,
        }
        return {name: change for name, change in found.items() if change is not None}

    def to_json(self) -> dict[str, Any]:
        """Flat; a missing loss is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`; keys of others are ignored."""
        own = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        return cls(**{key: _frozen(value) for key, value in own.items()})


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """What a run was begun with."""

    fingerprint: Mapping[str, Any]
    """Everything that the result depends on; flat."""
    labels: Mapping[str, Any]
    """Names of things whose content is in the fingerprint."""

    def to_json(self) -> dict[str, Any]:
        """Both, as they are."""
        return {"labels": dict(self.labels), "fingerprint": dict(self.fingerprint)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(fingerprint=values["fingerprint"], labels=values["labels"])

    def differences(self, fingerprint: Mapping[str, Any]) -> list[str]:
        """What another fingerprint says otherwise, in words."""
        before, fingerprint = self.fingerprint, json.loads(json.dumps(dict(fingerprint)))
        return [
            f"{key} was {before.get(key)!r}, is {fingerprint.get(key)!r}"
            for key in sorted(before.keys() | fingerprint.keys())
            if before.get(key) != fingerprint.get(key)
        ]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
