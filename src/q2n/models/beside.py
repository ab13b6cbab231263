"""What stands beside the text model of a model for images or sound, and is copied as it is."""

from torch import nn
from transformers import PreTrainedModel

from q2n.models.auto_classes import has_towers
from q2n.patterns import listed


def beside_note(model: PreTrainedModel, blocks: str) -> str | None:
    """A sentence on it, without a full stop; None for a text model.

    Args:
        blocks: name of the list of decoder blocks.
    """
    if not has_towers(model):
        return None
    parts = _parts(model, blocks)
    total = sum(parameter.numel() for parameter in model.parameters())
    held = sum(p.numel() for part in parts.values() for p in part.parameters())
    return (
        f"Only the text model is quantized, by text alone; copied as it is: {listed([*parts])} "
        f"({held / total:.0%} of all weights)"
    )


def _parts(model: PreTrainedModel, blocks: str) -> dict[str, nn.Module]:
    """The modules around the text model that are no part of it, by name; the head is."""
    parts: dict[str, nn.Module] = {}
    around = blocks.rpartition(".")[0]
    while around:
        inner, around = around, around.rpartition(".")[0]
        for name, child in model.get_submodule(around).named_children():
            full = f"{around}.{name}" if around else name
            own = full == inner or child is model.get_output_embeddings()
            if not own and any(True for _ in child.parameters()):
                parts[full] = child
    return parts
