"""Settings of a model under the names that transformers gave them before its release 5.

mlx-lm reads these, and where one is missing takes a default without a word: another base of the
rotary embedding, and the text is wrong.

    rope_parameters {rope_theta, partial_rotary_factor, rope_type, ...}
        -> rope_theta, partial_rotary_factor; rope_scaling, if the type is not "default"
    rope_parameters {full_attention: {...}, sliding_attention: {...}}
        -> the former's as above, the latter's base as rope_local_base_freq
    _sliding_window_pattern
        -> sliding_window_pattern
"""

from collections.abc import Mapping
from typing import Any

OWN = ("rope_theta", "partial_rotary_factor")
"""Entries of the rotary embedding that stood on their own."""


def with_older_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration with older names beside the present ones, also of the text model
    within one of several parts. Names that are there already stay as they are."""
    older = _rotary(config.get("rope_parameters") or {})
    if "_sliding_window_pattern" in config:
        older["sliding_window_pattern"] = config["_sliding_window_pattern"]
    if isinstance(config.get("text_config"), dict):
        return {**older, **config, "text_config": with_older_names(config["text_config"])}
    return {**older, **config}


def _rotary(parameters: Mapping[str, Any]) -> dict[str, Any]:
    if "full_attention" in parameters:
        local = parameters.get("sliding_attention", {}).get("rope_theta")
        older = _rotary(parameters["full_attention"])
        return older if local is None else {**older, "rope_local_base_freq": local}
    older = {name: parameters[name] for name in OWN if name in parameters}
    if parameters.get("rope_type", "default") != "default":
        older["rope_scaling"] = {k: x for k, x in parameters.items() if k not in OWN}
    return older
