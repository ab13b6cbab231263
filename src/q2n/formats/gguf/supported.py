"""Configurations under which llama.cpp would compute something else than transformers does.

llama.cpp fixes much of a model by its architecture's name: the activation, how attention is scaled,
which layers see a window. An entry of config.json that says otherwise would give wrong text and no
error, so that such a model is refused before anything is done, or noted where only long texts
differ.
"""

from collections.abc import Callable
from typing import Any

from transformers import PretrainedConfig

from q2n.errors import InputError
from q2n.formats.gguf.architecture import Architecture, head_size
from q2n.formats.gguf.latent import latent_problem
from q2n.formats.gguf.mixtures import mixture_problem
from q2n.formats.gguf.rope import LOCAL, rope_problem
from q2n.option_types import shown


def require_supported(architecture: Architecture, config: PretrainedConfig) -> None:
    """Refuse a configuration under which llama.cpp would compute something else.

    Raises:
        InputError: naming the entries, their values and what llama.cpp has.
    """
    wrong = [problem for check in _CHECKS if (problem := check(architecture, config))]
    if wrong:
        raise InputError(
            f"llama.cpp cannot run this {architecture.name} model: {'; '.join(wrong)}; use another "
            "--format"
        )


def window_notes(architecture: Architecture, config: PretrainedConfig) -> list[str]:
    """What to say of layers that see a window of the text, where llama.cpp has none."""
    window = _ignored_window(architecture, config)
    if window is None:
        return []
    return [
        f"llama.cpp lets every layer see the whole text where this model sees the last {window} "
        f"tokens: longer texts give other predictions there (--ctx-size {window} avoids them)"
    ]


def _ignored_window(architecture: Architecture, config: Any) -> int | None:
    window = getattr(config, "sliding_window", None)
    if architecture.window_pattern is not None or window is None:
        return None
    types = getattr(config, "layer_types", None) or ["sliding_attention"]
    sees_less = window < config.max_position_embeddings and "sliding_attention" in types
    return window if sees_less else None


def _activation(architecture: Architecture, config: Any) -> str | None:
    used = getattr(config, "hidden_activation", None) or config.hidden_act
    if used == architecture.activation:
        return None
    return f"its activation is {shown(used)}, and there it is {architecture.activation}"


def _widths(architecture: Architecture, config: Any) -> str | None:
    heads, size = config.num_attention_heads, head_size(config)
    if not architecture.square or heads * size == config.hidden_size:
        return None
    return f"{heads} heads of {size} are not as wide as hidden_size {config.hidden_size}"


def _scale(architecture: Architecture, config: Any) -> str | None:
    scalar = getattr(config, "query_pre_attn_scalar", None)
    expected = head_size(config)
    if config.num_hidden_layers == architecture.scaled_by_heads:
        expected = config.hidden_size // config.num_attention_heads
    if scalar is None or scalar == expected:
        return None
    return f"query_pre_attn_scalar is {scalar}, and there it is {expected}"


def _caps(architecture: Architecture, config: Any) -> str | None:
    attention = getattr(config, "attn_logit_softcapping", None)
    final = getattr(config, "final_logit_softcapping", None)
    if architecture.caps_attention and None in (attention, final):
        return "it has no attn_logit_softcapping or no final_logit_softcapping"
    if not architecture.caps_attention and attention is not None:
        return f"attn_logit_softcapping is {attention}, and there it has none"
    return None


def _window(architecture: Architecture, config: Any) -> str | None:
    if architecture.window_pattern is None:
        return None
    if LOCAL not in config.layer_types:
        return f"none of its layer_types is {LOCAL}, and there some layers see a window"
    return None if config.sliding_window else f"sliding_window is {config.sliding_window}"


def _direction(architecture: Architecture, config: Any) -> str | None:
    both = getattr(config, "use_bidirectional_attention", None)
    return "it attends to later tokens (use_bidirectional_attention)" if both else None


def _clipped(architecture: Architecture, config: Any) -> str | None:
    most = getattr(config, "clip_qkv", None)
    return None if most is None else f"clip_qkv is {most}, and there nothing is clipped"


def _head(architecture: Architecture, config: Any) -> str | None:
    if architecture.tied_head or not config.tie_word_embeddings:
        return None
    return "its head is the embeddings (tie_word_embeddings), and there it is a tensor of its own"


def _shared_keys(architecture: Architecture, config: Any) -> str | None:
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    if architecture.shared_keys or heads == keys:
        return None
    return f"num_key_value_heads is {keys}, and there it is num_attention_heads ({heads})"


def _latent(architecture: Architecture, config: Any) -> str | None:
    return latent_problem(config) if architecture.latent else None


def _experts(architecture: Architecture, config: Any) -> str | None:
    return mixture_problem(architecture.mixture, config)


Check = Callable[[Architecture, Any], str | None]
"""What is wrong with a configuration, or None."""
_CHECKS: tuple[Check, ...] = (
    _activation,
    _widths,
    _scale,
    _caps,
    _window,
    _direction,
    _clipped,
    _head,
    _shared_keys,
    _latent,
    _experts,
    rope_problem,
)
