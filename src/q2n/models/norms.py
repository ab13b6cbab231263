"""Norms: what they multiply with is their weight, or 1 + their weight (Gemma's, Qwen3-Next's)."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

_SEED = 0


@torch.no_grad()
def offset_of(norm: nn.Module) -> float:
    """What a norm adds to its weight before it multiplies with it, 0 or 1: its output at weight 0,
    in parts of what weight 1 adds to it. 0 for what cannot be called with hidden states."""
    weight = norm.get_parameter("weight")
    generator = torch.Generator().manual_seed(_SEED)
    tried = torch.randn(1, 2, weight.shape[0], generator=generator).to(weight)
    zeros = {key: torch.zeros_like(x) for key, x in norm.named_parameters(recurse=False)}
    try:
        at_0 = functional_call(norm, zeros, (tried,))
        at_1 = functional_call(norm, zeros | {"weight": torch.ones_like(weight)}, (tried,))
    except (TypeError, AttributeError, RuntimeError):  # it takes a gate, or is not called at all
        return 0.0
    if not isinstance(at_0, Tensor):
        return 0.0
    added = (at_1 - at_0).float()
    return float(round(((at_0.float() * added).sum() / added.square().sum()).item()))
