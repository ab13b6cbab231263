"""What the blocks and layers of a checkpoint cost, beside the model that its record names."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import transformers

from q2n.errors import InputError
from q2n.evaluation.block_costs import BlockCosts
from q2n.evaluation.evaluate import Conditions, open_text
from q2n.evaluation.replaced_blocks import block_costs
from q2n.formats.load import open_checkpoint
from q2n.logging import Reporter
from q2n.models.blocks import BlockwiseModel
from q2n.models.devices import parse_device, requested_dtype
from q2n.models.model_source import ModelSource
from q2n.models.rotated_source import changed_source
from q2n.models.source import open_source
from q2n.option_types import Seed, ValueKind, require
from q2n.report.reading import read_record
from q2n.report.record import RECORD_FILE
from q2n.transforms.model_changes import OFF, ModelChanges

LENGTH, WINDOWS = 512, 4
"""Of the text, unless something else is asked for: every block is run for every other one."""


def costs_of(
    directory: Path, reference: str | None, tokenizer: Any, reporter: Reporter, on: Conditions
) -> BlockCosts:
    """Block by block and layer by layer, as `api.inspect_fidelity` says."""
    settings = _settings(directory)
    if reference is None and settings.get("model") is None:
        raise InputError(
            f"{directory} holds no {RECORD_FILE} that names the original; give it with --reference"
        )
    quantized = open_checkpoint(
        directory, requested_dtype(on.dtype), trust_remote_code=on.trust_remote_code
    )
    dtype, revision = str(quantized.dtype).removeprefix("torch."), settings.get("revision")
    source = open_source(
        reference or settings["model"],
        dtype=dtype,
        trust_remote_code=on.trust_remote_code,
        revision=None if reference is not None else revision,
    )
    text = open_text(directory, tokenizer, on, reporter)
    device, (changed, notes) = parse_device(on.device), _in_the_same_basis(source, settings)
    if reference is None and _has_changed(source, settings):
        notes.append(
            f"{source.label} is not as it was when it was quantized: its weights or its "
            "configuration have changed since, and the costs with them"
        )
    for note in notes:
        reporter.note(note)
    costs = block_costs(
        BlockwiseModel(changed, device),
        BlockwiseModel(quantized, device),
        text,
        batch_size=on.batch_size,
        reporter=reporter,
    )
    return replace(costs, notes=(*text.notes, *notes, *costs.notes))


def _settings(directory: Path) -> dict[str, Any]:
    """Of the run that wrote a checkpoint; empty where there is no record."""
    file = directory / RECORD_FILE
    return dict(read_record(file).settings) if file.exists() else {}


def _has_changed(source: ModelSource, settings: dict[str, Any]) -> bool:
    """Whether the original is surely another model than the record's. Where the run rotated it or
    rounded in it, or another release of transformers read its configuration, that is not known."""
    plain = _changes(settings).none
    same_reader = settings.get("transformers_version") == transformers.__version__
    known = plain and same_reader and "model_sha256" in settings
    return known and settings["model_sha256"] != source.digest()


def _changes(settings: dict[str, Any]) -> ModelChanges:
    """What the run did to the model."""
    return ModelChanges(
        **{x.name: settings[x.name] for x in fields(ModelChanges) if x.name in settings}
    )


def _in_the_same_basis(
    source: ModelSource, settings: dict[str, Any]
) -> tuple[ModelSource, list[str]]:
    """The original, rotated as the run rotated it, and what must be said of that."""
    changes = _changes(settings)
    seed = settings.get("seed", 0)
    require("seed", seed, ValueKind.of(Seed))
    if changes.rotate == "learned":
        raise InputError(
            "the rotation of this checkpoint was learned, and a checkpoint does not keep it: "
            "without it the original cannot be set beside its blocks"
        )
    notes = []
    if changes.activations is not None:
        notes.append(
            "Errors of layers are those of their weights alone; blocks and divergences have the "
            "rounded activations in them too"
        )
    if changes.rotate != "none":
        notes.append(
            f"The reference is the original rotated as the run rotated it ({changes.rotate}, seed "
            f"{seed}): the same function, in the basis of the checkpoint"
        )
    rotation = replace(changes, activation_bits=OFF, kv_bits=OFF)
    return changed_source(source, rotation, seed), notes
