"""Who owns the options, and the objects that settings describe."""

from dataclasses import dataclass, replace

from q2n.config.options import CHANGES
from q2n.config.settings import Settings
from q2n.layers.quantized import StorageSpec
from q2n.linalg.statistics import RequiredStatistics
from q2n.method import Method, Wrapper
from q2n.methods import METHODS
from q2n.refit.block import BlockRefit
from q2n.refit.model import ModelRefit
from q2n.refit.rotation import RotationLearning
from q2n.transforms.model_changes import ModelChanges
from q2n.wrappers.correction import InputErrorCorrection
from q2n.wrappers.incoherence import Incoherence
from q2n.wrappers.nullspace import NullSpace
from q2n.wrappers.output_scales import OutputScales

WRAPPERS: dict[str, type[Wrapper]] = {
    "correction": InputErrorCorrection,
    "nullspace": NullSpace,
    "output scales": OutputScales,
    "incoherence": Incoherence,
}
"""Every wrapper, the innermost first: the order in which they go around a method."""

BY_SWITCH = {
    "output scales": ("target", "output_scales"),
    "incoherence": ("projection", "incoherence"),
}
"""Wrapper -> the field that its switch fills, and the switch. Such a field is no option."""


def build_method(settings: Settings) -> Method:
    """The method with the wrappers that take part, the random basis around all of them or around
    the method alone.

    Raises:
        InputError: options that contradict each other.
    """
    method = METHODS[settings.method](**settings.options[settings.method])
    taking_part = [owner for owner in WRAPPERS if owner in settings.options]
    if settings.run.incoherence_around == "method":
        taking_part.sort(key=lambda owner: owner != "incoherence")
    for owner in taking_part:
        options = dict(settings.options[owner])
        if owner in BY_SWITCH:
            name, switch = BY_SWITCH[owner]
            options[name] = getattr(settings.run, switch)
        method = WRAPPERS[owner](inner=method, **options)
    return method


def storage(method: Method, changes: ModelChanges) -> StorageSpec:
    """What a format must hold: the method's layers and, maybe, parts that run beside them."""
    return replace(method.storage, runtime=not changes.none)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What settings describe, built."""

    method: Method
    """With its wrappers."""
    changes: ModelChanges
    """Of the model around the layers."""
    storage: StorageSpec
    """What a format must hold."""
    block_refit: BlockRefit | None
    model_refit: ModelRefit | None
    rotation_learning: RotationLearning | None
    """Before the first block."""
    title: str
    """All of it in one line, for a model card."""

    @property
    def reads_text(self) -> bool:
        """Whether calibration text is needed."""
        learns = self.model_refit is not None or self.rotation_learning is not None
        return self.streams > 0 or learns

    @property
    def streams(self) -> int:
        """Models that run side by side through each block: 2 where the full-precision one runs
        beside the quantized prefix, 0 where no text does."""
        required = self.method.required_statistics
        if RequiredStatistics.CROSS in required or self.block_refit is not None:
            return 2
        return 1 if required or self.model_refit is not None else 0


def build_plan(settings: Settings) -> Plan:
    """Build what the settings describe.

    Raises:
        InputError: options that contradict each other.
    """
    refit, steps = settings.run.refit, settings.run.refit_steps
    method = build_method(settings)
    changes = ModelChanges(**settings.options[CHANGES])
    parts = [method.title, changes.title, "" if refit == "off" else f"then refit ({refit})"]
    return Plan(
        method=method,
        changes=changes,
        storage=storage(method, changes),
        block_refit=BlockRefit(steps=steps) if refit in ("block", "both") else None,
        model_refit=ModelRefit(steps=steps) if refit in ("model", "both") else None,
        rotation_learning=_rotation_learning(changes),
        title=", ".join(part for part in parts if part),
    )


def _rotation_learning(changes: ModelChanges) -> RotationLearning | None:
    if changes.rotate != "learned":
        return None
    return RotationLearning(
        steps=changes.rotate_steps,
        rate=changes.rotate_rate,
        loss=changes.rotate_loss,
        weights=changes.learned_weights,
    )
