"""The modules of a model without a second copy of its weights.

From a configuration they are built on the meta device; from a model in memory they are
copied, and the copies share the original's tensors. Either way the modules are ours: what
is done to them (recorded forwards, evaluation mode, loaded tensors) is done to no other model.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from accelerate import init_empty_weights
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel


def build_skeleton(
    config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Modules from a configuration: weights on the meta device, buffers real.

    `dtype` counts although there are no weights: a buffer that is not stored, such as
    Gemma's embedding scale, is computed in it.
    """
    with init_empty_weights(include_buffers=False), _EmptyOnMeta():
        model = AutoModelForCausalLM.from_config(
            deepcopy(config),  # it is told the dtype
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
    model.tie_weights()
    return model.eval()


def share_skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """Copies of a model's modules that hold the very tensors of the original."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return deepcopy(model, shared).eval()


def stored_tensors(model: nn.Module) -> Iterator[tuple[str, Shaped[Tensor, "..."]]]:
    """Parameters and persistent buffers; of tied parameters the first name only."""
    yield from model.named_parameters()
    saved = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


class _EmptyOnMeta(TorchFunctionMode):
    """`torch.empty` gives meta tensors: `init_empty_weights` alone drops each weight only after
    its memory was reserved, and the allocator keeps that."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        placed = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **placed})
