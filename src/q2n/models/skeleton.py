"""The modules of a model without a second copy of its weights.

From a configuration they are built on the meta device; from a model in memory they are
copied, and the copies share the original's tensors. Either way the modules are ours: what
is done to them (recorded forwards, evaluation mode, loaded tensors) is done to no other model.
"""

import re
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


def aliases(model: nn.Module) -> dict[str, list[str]]:
    """Name -> the other names, of every parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    several = [group for group in names.values() if len(group) > 1]
    return {name: [x for x in group if x != name] for group in several for name in group}


def set_tied(config: PretrainedConfig, tied: bool) -> PretrainedConfig:
    """The same object, which now says whether the head is the embeddings."""
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = tied
    return config


def loaded_dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype in which transformers loads each floating-point tensor of a skeleton of `dtype`:
    that one but for some, such as the biases of a router."""
    own = {name: x.dtype for name, x in stored_tensors(model) if x.is_floating_point()}
    return own | planned_dtypes(model, dtype)


def planned_dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Tensors that transformers loads in another dtype than it is told, such as the biases of a
    router, in float32."""
    plan = {re.compile(p.replace("*", ".*")): t for p, t in model._get_dtype_plan(dtype).items()}
    floating = [name for name, tensor in stored_tensors(model) if tensor.is_floating_point()]
    return {
        name: kept for pattern, kept in plan.items() for name in floating if pattern.search(name)
    }


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
