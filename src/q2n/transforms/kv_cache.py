"""Keys and values as a quantized cache would hold them.

Attention reads them rounded: token by token, head by head, in groups of a head's channels. With a
rotation M both queries and keys of each head are multiplied by it first; the scores stay, and the
keys lose their outlying channels. This stands where transformers lets an attention function be
registered by name, after the position embedding and after the cache: what is simulated is the
rounding; the cache itself keeps the model's dtype.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from q2n.errors import InputError
from q2n.grids.per_token import TokenGrid
from q2n.linalg.kronecker import KroneckerMatrix

PREFIX = "q2n_"
_ATTRIBUTE = "q2n_cache"

Queries = Float[Tensor, "batch heads new size"]
Keys = Float[Tensor, "batch kv_heads length size"]
Values = Float[Tensor, "batch kv_heads length value_size"]


class RoundedCache:
    """How keys and values reach one attention."""

    def __init__(self, grid: TokenGrid, rotation: KroneckerMatrix | None):
        self.grid, self.rotation = grid, rotation

    def __call__(self, query: Queries, key: Keys, value: Values) -> tuple[Queries, Keys, Values]:
        if self.rotation is not None:
            self.rotation = self.rotation.ready_for(query)
            query, key = self.rotation.apply(query), self.rotation.apply(key)
        return query, self.grid.quantize(key), self.grid.quantize(value)


def round_cache(
    model: nn.Module,
    attention: Iterable[nn.Module],
    grid: TokenGrid,
    rotation: KroneckerMatrix | None,
) -> None:
    """Make these attention modules of a transformers model read rounded keys and values.

    Raises:
        InputError: the model does not take registered attention functions.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"a cache is rounded in a whole transformers model, not {type(model)}")
    for module in attention:
        setattr(module, _ATTRIBUTE, RoundedCache(grid, rotation))
    name = _registered(model.config._attn_implementation)
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise InputError(
            f"{type(model).__name__} does not let its attention be replaced, so its cache cannot "
            "be rounded; use --kv-bits 16"
        )


def _registered(base: str) -> str:
    """The name of the attention `base` behind a rounded cache. `eager` is each model's own and in
    no registry; `sdpa` computes the same."""
    base = "sdpa" if base == "eager" else base.removeprefix(PREFIX)
    if base not in ALL_ATTENTION_FUNCTIONS or base not in ALL_MASK_ATTENTION_FUNCTIONS:
        raise InputError(
            f"keys and values cannot be rounded in front of the attention {base!r}; load the model "
            "with attn_implementation='sdpa'"
        )
    name = PREFIX + base
    AttentionInterface.register(name, partial(_attend, base))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def _attend(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    query, key, value = getattr(module, _ATTRIBUTE)(query, key, value)
    return ALL_ATTENTION_FUNCTIONS[base](module, query, key, value, *args, **kwargs)
