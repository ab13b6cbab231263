"""What is said and refused of a run before any work: of settings, and of every layer's shape."""

import hashlib
import json

from q2n.config.owners import Plan
from q2n.config.runtimes import check_sizes, runtime_notes
from q2n.config.settings import Settings
from q2n.config.widths import check_names
from q2n.formats.format import Format
from q2n.models.opened import OpenedModel


def notes_of_settings(settings: Settings, opened: OpenedModel) -> list[str]:
    """What follows from the settings that a user must know of the result."""
    run = settings.run
    flat = settings.flat()
    notes = runtime_notes(run.runtime, run.format, flat.get("bits"), flat["activation_bits"])
    if run.dtype == "half" and str(opened.source.config.dtype).endswith("float32"):
        notes.append("The float32 model is run and written in bfloat16")
    return notes


def widths_sha256(plan: Plan) -> str | None:
    """Of the widths of a file, which its name does not tell."""
    if not plan.widths:
        return None
    return hashlib.sha256(json.dumps(dict(plan.widths), sort_keys=True).encode()).hexdigest()


def check_layers(opened: OpenedModel, plan: Plan, format: Format, runtime: str | None) -> None:
    """Refuse a layer that the options, the format or the runtime do not fit, before any work.

    Raises:
        InputError: naming the layer and what would do.
    """
    targets = opened.blocks.targets()
    if plan.widths:
        check_names(plan.widths, targets)
    if any(target.experts for target in targets.values()):
        format.container.check_experts(opened.source, plan.storage, opened.blocks.experts_left())
    for name, target in targets.items():
        plan.method.check(name, target.shape)
        for storage in plan.method.storage_of(name):
            format.codec.check(name, target.shape, storage)
        format.codec.check_layout(name, transposed=target.transposed)
        if runtime is not None:
            check_sizes(runtime, format.name, name, target.shape)
