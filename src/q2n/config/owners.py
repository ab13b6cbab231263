"""Who owns the options, and the objects that settings describe."""

from dataclasses import replace

from q2n.config.options import CHANGES
from q2n.config.settings import Settings
from q2n.layers.quantized import StorageSpec
from q2n.method import Method, Wrapper
from q2n.methods import METHODS
from q2n.refit.block import BlockRefit
from q2n.refit.model import ModelRefit
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


def build_changes(settings: Settings) -> ModelChanges:
    """What the run changes in the model around its layers."""
    return ModelChanges(**settings.options[CHANGES])


def storage(method: Method, changes: ModelChanges) -> StorageSpec:
    """What a format must hold: the method's layers and, maybe, parts that run beside them."""
    return replace(method.storage, runtime=not changes.none)


def build_block_refit(settings: Settings) -> BlockRefit | None:
    """The refit of each block, if asked for."""
    asked = settings.run.refit in ("block", "both")
    return BlockRefit(steps=settings.run.refit_steps) if asked else None


def build_model_refit(settings: Settings) -> ModelRefit | None:
    """The refit of the whole model, if asked for."""
    asked = settings.run.refit in ("model", "both")
    return ModelRefit(steps=settings.run.refit_steps) if asked else None
