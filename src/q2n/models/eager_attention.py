"""Attention that is a model's own, without the weights that it returns.

Where torch's attention will not do (Gemma 2 and 4, gpt-oss) a model's file has one of its own,
`eager_attention_forward`, which returns its weights [batch, heads, tokens, tokens] beside its
output, for who asks the model for them. The layer holds them to its end, and a pass that pauses
within the block would hold those of every window: 69 GB for the 64 heads of gpt-oss and 128 windows
of 2048 tokens. transformers takes attention functions by name, and this one has a name: it calls
the model's own and lets the weights go.
"""

import inspect
import sys
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

NAME = "q2n_eager"
_FUNCTION, _CALLED = "eager_attention_forward", "eager"


def let_weights_go(model: PreTrainedModel) -> None:
    """From now on the model, and each part of it, does so where it can. What attention returns
    otherwise stays as it is, to the bit."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and _can(part):
            AttentionInterface.register(NAME, _attend)
            AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS[_CALLED])
            part.config._attn_implementation = NAME


def _can(model: PreTrainedModel) -> bool:
    """Whether attention is the model's own, lies where it is looked for, and nothing else asks
    whether it is: under another name the answer would be another."""
    file = _file_of(model)
    if model.config._attn_implementation != _CALLED or not hasattr(file, _FUNCTION):
        return False
    return f'"{_CALLED}"' not in inspect.getsource(file)


def _file_of(module: nn.Module) -> ModuleType:
    return sys.modules[type(module).__module__]


def _attend(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    output, _ = getattr(_file_of(module), _FUNCTION)(module, *args, **kwargs)
    return output, None
