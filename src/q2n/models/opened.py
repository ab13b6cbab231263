"""A model that a run works on: its original tensors, the changed ones, and its blocks."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel

from q2n.models.blocks import BlockwiseModel
from q2n.models.devices import parse_device
from q2n.models.model_source import ModelSource, assemble
from q2n.models.rotated_source import changed_source
from q2n.models.source import open_source
from q2n.models.targets import LayerFilter
from q2n.models.uncovered import uncovered_note
from q2n.patterns import listed
from q2n.transforms.model_changes import ModelChanges


@dataclass(frozen=True)
class OpenedModel:
    """The original model, the changed one, and its blocks."""

    original: ModelSource
    """As the user gave it."""
    source: ModelSource
    """As its layers are quantized: rotated, if the run asks for that."""
    blocks: BlockwiseModel
    """The same, a block at a time."""

    @property
    def notes(self) -> list[str]:
        """What a user must know of how the model was read and of what is not quantized, in
        sentences without a full stop."""
        notes = self.source.notes
        if untaken := self.original.untaken:
            taken = "copied unchanged"
            if not self.source.untaken:
                taken = "left out, for the model is rotated and they are not"
            notes.append(f"Tensors that no module takes are {taken}: {listed(untaken)}")
        if uncovered := uncovered_note(self.blocks.blocks):
            notes.append(uncovered)
        return notes + self.blocks.notes()

    def with_source(self, source: ModelSource) -> Self:
        """The same original with its layers quantized as this source has them."""
        blocks = BlockwiseModel(source, self.blocks.device, self.blocks.layers)
        return replace(self, source=source, blocks=blocks)

    def in_memory(self, source: ModelSource) -> PreTrainedModel:
        """One of the two as a whole, on the device of the run."""
        return assemble(source, device=self.blocks.device)


def open_model(
    model: str | Path | PreTrainedModel,
    changes: ModelChanges,
    layers: LayerFilter,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    tokenizer: Any = None,
) -> OpenedModel:
    """Open a checkpoint folder, hub name, packaged model or model object; no weight is loaded yet.

    Args:
        changes: what the run changes around the layers; `seed` draws its random rotations.
        layers: which layers are quantized.
        tokenizer: of a model object, as for `open_source`.

    Raises:
        InputError: no such model, device or layer, or a model that cannot be changed so.
    """
    where = parse_device(device)
    original = open_source(
        model,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        revision=revision,
        tokenizer=tokenizer,
    )
    source = changed_source(original, changes, seed, layers)
    return OpenedModel(original, source, BlockwiseModel(source, where, layers))
