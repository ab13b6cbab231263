"""Settings of a model under the names that transformers gave them before its release 5.

mlx-lm and exllamav3 read these, and where one is missing stop, or take a default without a word:
another base of the rotary embedding, and the text is wrong. (mlx-lm: mlx_lm/models/*.py; exllamav3:
`read_rope_settings_default` of model/config.py, which looks for the settings of all layers and
finds none in those that are kept by kinds of layers.)

    rope_parameters {rope_theta, partial_rotary_factor, rope_type, ...}
        -> rope_theta, partial_rotary_factor; rope_scaling, null if the type is "default", else
           with the type under both names that it has had
    rope_parameters {full_attention: {...}, sliding_attention: {...}}
        -> the former's as above, the latter's base as rope_local_base_freq
    _sliding_window_pattern
        -> sliding_window_pattern
    what one kind of model called otherwise
        -> OF_TYPE
"""

from collections.abc import Mapping
from typing import Any

OWN = ("rope_theta", "partial_rotary_factor")
"""Entries of the rotary embedding that stood on their own."""
OF_TYPE: Mapping[str, Mapping[str, str]] = {
    "gpt_neox": {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
    "qwen3_moe": {"num_experts": "num_local_experts"},
}
"""Type of model -> older name -> the one that it has here."""


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
