"""Rotary position embeddings in a GGUF file.

Pair i of a head of n is turned by position / (f_i theta^(2i/n)). llama.cpp knows the kinds

    linear     all f_i are `factor`
    yarn       f_i between 1 and `factor` by wavelength
    llama3     the same by another rule: the f_i are a tensor of the file, rope_freqs
    longrope   two such tensors, for short and for long contexts, and a factor on q and k

by an entry of the file each; what transformers makes of other entries has no place there.
"""

from collections.abc import Mapping
from typing import Any

import torch
from gguf import GGUFWriter, RopeScalingType
from jaxtyping import Float
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from q2n.formats.gguf.architecture import Architecture, head_size
from q2n.option_types import shown

_ALWAYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_ENTRIES: Mapping[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "yarn": {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow"},
    "llama3": {
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
    },
    "longrope": {
        "factor",
        "original_max_position_embeddings",
        "short_factor",
        "long_factor",
        "attention_factor",
    },
}
"""What each kind may say."""
_RAMP = {"beta_fast": 32.0, "beta_slow": 1.0}
"""Between which wavelengths yarn's f_i rise: a file can say it, and of these architectures
llama.cpp's loaders do not read it."""
_SCALES = ("mscale", "mscale_all_dim")
"""What yarn may say besides where attention is latent: by the second of the two llama.cpp scales
attention, and knows the two alike only."""
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def rope_problem(architecture: Architecture, config: Any) -> str | None:
    """What llama.cpp would compute otherwise, or None."""
    ropes = _by_layers(config)
    kind = ropes[GLOBAL].get("rope_type", "default")
    if kind not in architecture.ropes:
        return f"rope_type is {shown(kind)}, and it knows {', '.join(architecture.ropes)}"
    if ropes.get(LOCAL, {}).get("rope_type", "default") != "default":
        return "the position embedding of layers with a window is scaled"
    scaled = architecture.latent and kind == "yarn"
    for entries in ropes.values():
        taken = _ENTRIES[kind] | set(_SCALES if scaled else ())
        problem = _unknown(architecture, entries, taken) or _other_ramp(entries)
        problem = problem or (_unlike(entries) if scaled else None)
        if problem:
            return problem
    return None


def length_notes(config: Any) -> list[str]:
    """What to say of factors that change with the length of a text: llama.cpp chooses them by its
    context, once."""
    entries = _by_layers(config)[GLOBAL]
    short = entries.get("original_max_position_embeddings", 0)
    if entries.get("rope_type") != "longrope" or short >= config.max_position_embeddings:
        return []
    return [
        "llama.cpp takes the long position factors for all texts where its context is longer than "
        f"{short} tokens, this model only for texts that are: shorter ones give other predictions "
        f"there (--ctx-size {short} avoids them)"
    ]


def _other_ramp(entries: Mapping[str, Any]) -> str | None:
    for name, there in _RAMP.items():
        if (value := entries.get(name) or there) != there:
            return f"rope_parameters has {name} {shown(value)}, and there it is {there:g}"
    return None


def _unlike(entries: Mapping[str, Any]) -> str | None:
    first, second = (entries.get(name) for name in _SCALES)
    if first and first == second:
        return None
    return f"rope_parameters has mscale {first} and mscale_all_dim {second}, and there they are one"


def _unknown(architecture: Architecture, entries: Mapping[str, Any], taken: set[str]) -> str | None:
    for name, value in entries.items():
        if name not in taken | _ALWAYS and value is not None:
            return f"rope_parameters has {name} {shown(value)}, for which it has no place"
    share = entries.get("partial_rotary_factor") or 1.0
    if share != 1.0 and not architecture.partial_rope:
        return f"partial_rotary_factor is {share}, and there it is 1"
    return None


def add_rope(writer: GGUFWriter, config: Any) -> None:
    """Write the entries of a configuration that has no `rope_problem`."""
    ropes = _by_layers(config)
    entries = ropes[GLOBAL]
    share = entries.get("partial_rotary_factor") or 1.0
    writer.add_rope_dimension_count(int(head_size(config) * share))
    writer.add_rope_freq_base(entries["rope_theta"])
    if LOCAL in ropes:
        writer.add_rope_freq_base_swa(ropes[LOCAL]["rope_theta"])
    kind = entries.get("rope_type", "default")
    if kind in ("linear", "yarn", "longrope"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_factor(entries["factor"])
    if kind in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(entries["original_max_position_embeddings"])
    if kind == "yarn" and (scale := entries.get(_SCALES[1])):
        writer.add_rope_scaling_yarn_log_mul(0.1 * scale)  # that is how the loader wants it
    if kind == "longrope":
        writer.add_rope_scaling_attn_factors(ROPE_INIT_FUNCTIONS[kind](config, "cpu")[1])


def rope_tensors(config: Any) -> dict[str, Float[Tensor, " pairs"]]:
    """The f_i of kinds that have them in tensors, by their names in the file."""
    entries = _by_layers(config)[GLOBAL]
    kind = entries.get("rope_type", "default")
    if kind == "longrope":
        return {
            f"rope_factors_{length}.weight": torch.tensor(entries[f"{length}_factor"]).float()
            for length in ("long", "short")
        }
    if kind != "llama3":
        return {}
    size = head_size(config)
    plain = entries["rope_theta"] ** -(torch.arange(0, size, 2).float() / size)
    return {"rope_freqs.weight": plain / ROPE_INIT_FUNCTIONS[kind](config, "cpu")[0]}


def _by_layers(config: Any) -> dict[str, Mapping[str, Any]]:
    """Entries of the layers that see all tokens and, if they have their own, of those that see a
    window."""
    parameters = config.rope_parameters
    if GLOBAL in parameters or LOCAL in parameters:
        return {GLOBAL: parameters.get(GLOBAL) or parameters[LOCAL], **parameters}
    return {GLOBAL: parameters}
