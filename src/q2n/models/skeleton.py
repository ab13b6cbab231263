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
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from q2n.errors import InputError, reason_of
from q2n.models.auto_classes import auto_class
from q2n.models.config_file import BAD_CONFIG


def build_skeleton(
    config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Modules from a configuration: weights on the meta device, buffers real.

    `dtype` counts although there are no weights: a buffer that is not stored, such as
    Gemma's embedding scale, is computed in it. Attention is torch's own or, in models that do not
    take it, the model's, whatever the configuration wants: another one may be missing here.

    Raises:
        InputError: no causal language model is built so.
    """
    config = deepcopy(config)  # it is told the dtype
    try:
        config._attn_implementation = None
        with init_empty_weights(include_buffers=False), _EmptyOnMeta():
            model = auto_class(config).from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code
            )
        model.tie_weights()
    except BAD_CONFIG as cause:
        raise InputError(
            f"no causal language model can be built from config.json: {reason_of(cause)}"
        ) from cause
    return model.eval()


def share_skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """Copies of a model's modules that hold the very tensors of the original. An attention that
    needs more than torch is replaced by torch's own, as in `build_skeleton`."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    copy = deepcopy(model, shared).eval()
    wanted = str(copy.config._attn_implementation)
    if "flash" in wanted or wanted not in (*ALL_ATTENTION_FUNCTIONS, "eager", "None"):
        copy.set_attn_implementation("sdpa" if copy._supports_sdpa else "eager")
    return copy


def stored_tensors(model: nn.Module) -> Iterator[tuple[str, Shaped[Tensor, "..."]]]:
    """Parameters and persistent buffers; of tied parameters the first name only."""
    yield from model.named_parameters()
    saved = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


_FILLED = (torch.ones, torch.zeros, torch.full, torch.arange, torch.linspace, torch.eye)
_LARGEST_BUFFER = 2**27
"""Numbers: half a gigabyte."""


class _EmptyOnMeta(TorchFunctionMode):
    """`torch.empty` gives meta tensors: `init_empty_weights` alone drops each weight only after
    its memory was reserved, and the allocator keeps that. Tensors that are filled are real, as they
    may be buffers, but none larger than a model can need."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        on_meta = {**(kwargs or {}), "device": "meta"}
        if func is torch.empty:
            return func(*args, **on_meta)
        if func in _FILLED and (numbers := func(*args, **on_meta).numel()) > _LARGEST_BUFFER:
            raise ValueError(f"a buffer of {numbers} numbers")
        return func(*args, **(kwargs or {}))
