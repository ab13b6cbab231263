"""Settings of a model under the names that transformers gave them before its release 5.

mlx-lm reads these, and where one is missing stops, or takes a default without a word: another base
of the rotary embedding, and the text is wrong.

    rope_parameters {rope_theta, partial_rotary_factor, rope_type, ...}
        -> rope_theta, partial_rotary_factor; rope_scaling, null if the type is "default", else
           with the type under both names that it has had
    rope_parameters {full_attention: {...}, sliding_attention: {...}}
        -> the former's as above, the latter's base as rope_local_base_freq
    _sliding_window_pattern
        -> sliding_window_pattern
    what one kind of model called otherwise
        -> OF_TYPE

Of a factor on queries and keys it knows the default alone.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from q2n.option_types import shown

OWN = ("rope_theta", "partial_rotary_factor")
"""Entries of the rotary embedding that stood on their own."""
OF_TYPE: Mapping[str, Mapping[str, str]] = {
    "gpt_neox": {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
    "qwen3_moe": {"num_experts": "num_local_experts"},
}
"""Type of model -> older name -> the one that it has here."""
_FACTOR = "attention_factor"


def with_older_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration with older names beside the present ones, also of the text model
    within one of several parts. Names that are there already stay as they are."""
    older = _rotary(config.get("rope_parameters") or {})
    if "_sliding_window_pattern" in config:
        older["sliding_window_pattern"] = config["_sliding_window_pattern"]
    known = {**older, **config}
    names = OF_TYPE.get(config.get("model_type", ""), {})
    found = {**{old: known[new] for old, new in names.items() if new in known}, **known}
    if isinstance(config.get("text_config"), dict):
        return {**found, "text_config": with_older_names(config["text_config"])}
    return found


def rotary_problem(config: PretrainedConfig) -> str | None:
    """What mlx-lm would compute otherwise of a position embedding, or None."""
    plain = deepcopy(config)
    entries = getattr(plain, "rope_parameters", None) or {}
    kind, factor = entries.get("rope_type"), entries.pop(_FACTOR, None)
    if factor is None or kind not in ROPE_INIT_FUNCTIONS:
        return None
    default = ROPE_INIT_FUNCTIONS[kind](plain, "cpu")[1]
    if factor == default:
        return None
    return f"rope_parameters has {_FACTOR} {shown(factor)}, and there it is {default:.7g}"


def _rotary(parameters: Mapping[str, Any]) -> dict[str, Any]:
    if "full_attention" in parameters:
        local = parameters.get("sliding_attention", {}).get("rope_theta")
        older = _rotary(parameters["full_attention"])
        return older if local is None else {**older, "rope_local_base_freq": local}
    older = {name: parameters[name] for name in OWN if name in parameters}
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        others = {k: x for k, x in parameters.items() if k not in OWN}
        older["rope_scaling"] = {"type": kind, **others}
    elif parameters:
        older["rope_scaling"] = None
    return older
