"""What is said and refused of a run before any work: of settings, and of every layer's shape."""

import hashlib
import json

from q2n.config.options import RUN, defaults
from q2n.config.owners import Plan, formats_offered
from q2n.config.runtimes import check_sizes, runtime_notes
from q2n.config.settings import RunSettings, Settings
from q2n.config.widths import check_names
from q2n.errors import InputError
from q2n.models.blocks import BlockwiseModel
from q2n.models.opened import OpenedModel

_OF_TEXT = ("corpus", "windows")
"""Settings that say something of the calibration text alone."""


def notes_of_settings(settings: Settings, plan: Plan, opened: OpenedModel) -> list[str]:
    """What follows from the settings that a user must know of the result."""
    run = settings.run
    flat, format = settings.flat(), plan.format.name
    notes = runtime_notes(run.runtime, format, flat.get("bits"), flat["activation_bits"])
    if run.format is None and format != (usual := formats_offered(run)[0]):
        notes.append(
            f"Written as {format}, for {usual} cannot hold what {run.method} stores here "
            f"({plan.storage.kind} layers); --format chooses"
        )
    if run.dtype == "half" and str(opened.source.config.dtype).endswith("float32"):
        notes.append("The float32 model is run and written in bfloat16")
    idle = [name for name in _OF_TEXT if flat[name] != defaults([RUN])[name]]
    if idle and not plan.reads_text:
        notes.append(
            f"{run.method} with these settings reads no calibration text: {' and '.join(idle)} "
            f"{'does' if len(idle) == 1 else 'do'} nothing"
        )
    if not run.true_sequential and any(x.experts for x in opened.blocks.targets().values()):
        notes.append(
            "Statistics of all experts of a block are in memory together, for --true-sequential "
            "false measures it once: --expert-memory does not bound them"
        )
    return notes


def widths_sha256(plan: Plan) -> str | None:
    """Of the widths of a file, which its name does not tell."""
    if not plan.widths:
        return None
    return hashlib.sha256(json.dumps(dict(plan.widths), sort_keys=True).encode()).hexdigest()


def check_ranks(ranks: int, plan: Plan, run: RunSettings) -> None:
    """Refuse what works with all windows in one process (gradient steps, rewrites), and a rank that
    would have no calibration window.

    Args:
        ranks: how many there are.

    Raises:
        InputError: naming the flag, or the counts.
    """
    if ranks > 1 and plan.alone_for is not None:
        raise InputError(
            f"{plan.alone_for} takes one rank, for it works with the windows of all, and there are "
            f"{ranks}; leave it out, or start one rank"
        )
    if plan.reads_text and ranks > run.windows:
        raise InputError(
            f"{ranks} ranks and {run.windows} calibration windows: each rank takes at least "
            "one; start fewer ranks, or give more --windows"
        )


def check_layers(blocks: BlockwiseModel, plan: Plan, runtime: str | None) -> None:
    """Refuse a layer that the options, the format or the runtime do not fit, before any work.

    Raises:
        InputError: naming the layer and what would do.
    """
    targets, format = blocks.targets(), plan.format
    if plan.widths:
        check_names(plan.widths, targets)
    if any(target.experts for target in targets.values()):
        format.container.check_experts(blocks.source, plan.storage, blocks.experts_left())
    for name, target in targets.items():
        plan.method.check(name, target.shape)
        for storage in plan.method.storage_of(name):
            format.codec.check(name, target.shape, storage)
        format.codec.check_layout(name, transposed=target.transposed)
        if runtime is not None:
            check_sizes(runtime, format.name, name, target.shape)
