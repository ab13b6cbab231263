"""What llama.cpp calls the families of models, and in what its files differ from Hugging Face's.

llama.cpp turns pairs of neighbouring rows of q and k in llama models, transformers row i with row
i + n/2 of a head: there the rows of each head are interleaved. Gemma multiplies by 1 + w in its
norms: there the files hold 1 + w. The facts are those of llama.cpp's converter (conversion/*.py)
and of its loader (src/models/*.cpp), which says which tensors have a place and which it ignores.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
from transformers import PretrainedConfig

from q2n.errors import InputError
from q2n.formats.gguf.mixtures import Mixture, stack_of
from q2n.option_types import shown

_QKV = ("q_proj", "k_proj", "v_proj")
_ATTENTION = (*_QKV, "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_STATIC = ("default", "linear", "yarn")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One family of models."""

    name: str
    """As llama.cpp calls it."""
    activation: str = "silu"
    """Of its feed-forward layers."""
    interleaved: tuple[str, ...] = ()
    """Modules whose rows are interleaved within each head."""
    norm_offset: int = 0
    """What is added to the weights of norms."""
    biases: tuple[str, ...] = ()
    """Modules that may have one."""
    ropes: tuple[str, ...] = _STATIC
    """Kinds of rotary position embedding that it computes, by transformers' names."""
    partial_rope: bool = False
    """Whether a part of each head may stay without it."""
    square: bool = False
    """Whether all heads together must be as wide as the hidden states."""
    own_head: bool = True
    """Whether the head may be another tensor than the embeddings."""
    tied_head: bool = True
    """Whether it may be the embeddings."""
    shared_keys: bool = True
    """Whether several heads may have keys and values in common."""
    mixture: Mixture | None = None
    """What its layers have in place of feed-forward ones; None: no experts."""
    latent: bool = False
    """Whether keys and values of all heads are made of one short vector (latent.py)."""
    caps_attention: bool = False
    """Whether attention and head are capped, both."""
    window_pattern: int | None = None
    """Of so many layers the last sees all tokens and the others a window, unless the file says
    otherwise; None: all layers see all tokens, whatever the file says."""
    scaled_by_heads: int | None = None
    """At so many blocks attention is scaled by hidden size over heads, else by the size of a head;
    None: always by that."""

    @property
    def key(self) -> MODEL_ARCH:
        """For the tables of gguf-py."""
        return next(key for key, name in MODEL_ARCH_NAMES.items() if name == self.name)


_GEMMA: dict[str, Any] = {"activation": "gelu_pytorch_tanh", "norm_offset": 1}
_LLAMA = Architecture(
    name="llama",
    interleaved=("q_proj", "k_proj"),
    biases=(*_ATTENTION, *_MLP),
    ropes=(*_STATIC, "llama3"),
)
_DEEPSEEK = Mixture(normalized=False, width="moe_intermediate_size", first_dense=True)
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture(name="qwen2", biases=_QKV, square=True),
    "qwen3": Architecture(name="qwen3", biases=_QKV),
    "gemma2": Architecture(
        name="gemma2",
        ropes=("default",),
        own_head=False,
        caps_attention=True,
        window_pattern=2,
        scaled_by_heads=46,
        **_GEMMA,
    ),
    "gemma3_text": Architecture(
        name="gemma3",
        ropes=("default", "linear"),
        window_pattern=6,
        scaled_by_heads=62,
        **_GEMMA,
    ),
    "phi3": Architecture(
        name="phi3", ropes=("default", "longrope"), partial_rope=True, square=True
    ),
    "mixtral": replace(_LLAMA, biases=(), mixture=Mixture(normalized=True)),
    "qwen2_moe": Architecture(
        name="qwen2moe",
        biases=_QKV,
        square=True,
        tied_head=False,
        mixture=Mixture(
            normalized=False,
            width="moe_intermediate_size",
            shared_width="shared_expert_intermediate_size",
        ),
    ),
    "qwen3_moe": Architecture(
        name="qwen3moe",
        biases=_QKV,
        mixture=Mixture(normalized=True, width="moe_intermediate_size"),
    ),
    "olmoe": Architecture(
        name="olmoe",
        square=True,
        tied_head=False,
        shared_keys=False,
        mixture=Mixture(normalized=False),
    ),
    "deepseek": Architecture(
        name="deepseek", interleaved=("q_proj", "k_proj"), square=True, mixture=_DEEPSEEK
    ),
    "deepseek_v2": Architecture(
        name="deepseek2", ropes=("default", "yarn"), latent=True, mixture=_DEEPSEEK
    ),
}
"""By `model_type` of config.json."""


def head_size(config: Any) -> int:
    """Columns of a head."""
    size = getattr(config, "head_dim", None)
    return size if size else config.hidden_size // config.num_attention_heads


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The family of a model.

    Raises:
        InputError: none that is written here.
    """
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise InputError(
            f"--format gguf writes models of the types {', '.join(ARCHITECTURES)}, and this one is "
            f"{shown(kind)}; use another --format"
        )
    return ARCHITECTURES[kind]


def gguf_names(architecture: Architecture, blocks: int, names: Iterable[str]) -> dict[str, str]:
    """The model's name of a tensor -> its name in the file; experts of a stack have one.

    Raises:
        InputError: the file has no place for one.
    """
    known = get_tensor_name_map(architecture.key, blocks)
    found: dict[str, str] = {}
    for name in names:
        place = known.get_name(stack_of(name) or name, (".weight", ".bias"))
        if place is None or not _has_place(architecture, name):
            raise InputError(
                f"tensor {name!r} has no place in a {architecture.name} model of llama.cpp; use "
                "another --format"
            )
        found[name] = place
    return found


def _has_place(architecture: Architecture, name: str) -> bool:
    module, _, part = name.rpartition(".")
    if part == "bias":
        return module.rpartition(".")[2] in architecture.biases
    return architecture.own_head or module != "lm_head"


def is_norm(name: str) -> bool:
    """Whether a tensor is the weight of a norm."""
    return name.endswith("norm.weight")


def heads_of(architecture: Architecture, config: PretrainedConfig, name: str) -> int | None:
    """In how many heads the rows of a tensor are interleaved; None: they are not."""
    module = re.sub(r"\.(weight|bias)$", "", name).rpartition(".")[2]
    if module not in architecture.interleaved:
        return None
    return config.num_key_value_heads if module == "k_proj" else config.num_attention_heads
