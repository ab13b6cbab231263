"""A whole model from a source, in memory: what a block loop never needs."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from q2n.models.source import ModelSource


def assemble(
    source: ModelSource,
    replaced: Mapping[str, Tensor] | None = None,
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """The source's model, its rotations attached, its activations and cache not rounded.

    Args:
        replaced: tensors by full name that take the place of the source's.
    """
    replaced, model = replaced or {}, source.skeleton()
    state = {
        name: replaced[name].to(source.dtype) if name in replaced else source.in_model_dtype(name)
        for name in source.names()
    }
    model.load_state_dict(state, strict=False, assign=True)
    if model.config.get_text_config().tie_word_embeddings:
        model.tie_weights()
    return model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
