"""Do the finished blocks of a run belong to its model? Asked once, when a run goes on."""

from collections.abc import Mapping
from typing import Any

from q2n.errors import ResumeError
from q2n.models.blocks import BlockwiseModel
from q2n.pipeline.store import RunStore


def check_finished(store: RunStore, model: BlockwiseModel) -> None:
    """Compare names and shapes of the stored layers with the model's targets.

    Raises:
        ResumeError: there is a block that the model lacks, or one of other layers.
    """
    expected = _shapes_by_block(model)
    for index, values in enumerate(store.finished()):
        wanted = expected.get(values["block"]) if index < len(model) else None
        if wanted is None or values["block"] != model.block_name(index):
            raise ResumeError(
                f"{store.folder} holds block {values['block']} as number {index}, and the model "
                "has none of that name there; delete the folder to start again"
            )
        if difference := _difference(values, wanted):
            raise ResumeError(
                f"{store.folder}: the layers of {values['block']} are not the model's "
                f"({difference}); delete the folder to start again"
            )


def _shapes_by_block(model: BlockwiseModel) -> dict[str, dict[str, tuple[int, int]]]:
    blocks: dict[str, dict[str, tuple[int, int]]] = {
        f"{model.block_name(index)}.": {} for index in range(len(model))
    }
    for name, target in model.targets().items():
        block = next(prefix for prefix in blocks if name.startswith(prefix))
        blocks[block][name] = target.shape
    return {prefix.removesuffix("."): shapes for prefix, shapes in blocks.items()}


def _difference(values: Mapping[str, Any], wanted: Mapping[str, tuple[int, int]]) -> str:
    """What a finished block has otherwise than wanted; empty where it has not."""
    shapes = {name: tuple(layer["shape"]) for name, layer in values["layers"].items()}
    if missing := wanted.keys() - shapes.keys() - set(values["never_called"]):
        return f"{min(missing)} is missing"
    for name, shape in shapes.items():
        if shape != wanted.get(name):
            return f"{name} has shape {shape}, not {wanted.get(name)}"
    return ""
