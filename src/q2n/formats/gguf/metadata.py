"""What a GGUF file says of a model besides its tensors and its words.

The keys are gguf-py's; which of them an architecture has is what llama.cpp's loader asks for
(src/llama-model.cpp, src/models/*.cpp) and its converter writes (conversion/*.py).
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from gguf import GGML_QUANT_VERSION, GGUFType, GGUFWriter

from q2n.formats.gguf.architecture import Architecture, head_size
from q2n.formats.gguf.latent import add_latent
from q2n.formats.gguf.mixtures import add_mixture
from q2n.formats.gguf.rope import LOCAL, add_rope
from q2n.formats.gguf.tensor_types import TensorType

FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 12,
    "Q4_K": 15,
    "Q5_K": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "BF16": 32,
    "Q2_0": 41,
}
"""`enum llama_ftype` of include/llama.h: what most of a file is, for people who list files."""


def add_general(writer: GGUFWriter, name: str | None, types: Mapping[TensorType, int]) -> None:
    """Name, if it has one, and kind of a file with so many weights of each type."""
    writer.add_type(GGUFType.MODEL)
    if name is not None:
        writer.add_name(name)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    most = max(Counter(types).items(), key=lambda item: item[1])[0] if types else None
    writer.add_file_type(FILE_TYPES["F32" if most is None else most.name])


def add_architecture(writer: GGUFWriter, architecture: Architecture, config: Any) -> None:
    """Sizes and numbers of a model whose configuration is supported."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if architecture.latent:
        add_latent(writer, config)
    else:
        writer.add_key_length(head_size(config))
        writer.add_value_length(head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture.mixture is not None:
        add_mixture(writer, architecture.mixture, config)
    add_rope(writer, config)
    _add_caps(writer, config)
    _add_window(writer, architecture, config)


def _add_caps(writer: GGUFWriter, config: Any) -> None:
    if (cap := getattr(config, "attn_logit_softcapping", None)) is not None:
        writer.add_attn_logit_softcapping(cap)
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        writer.add_final_logit_softcapping(cap)


def _add_window(writer: GGUFWriter, architecture: Architecture, config: Any) -> None:
    if architecture.name == "phi3":  # it asks for the entry, and uses no window
        writer.add_sliding_window(config.sliding_window or 0)
    if (period := architecture.window_pattern) is None:
        return
    writer.add_sliding_window(config.sliding_window)
    local = [kind == LOCAL for kind in config.layer_types]
    if local != [block % period < period - 1 for block in range(len(local))]:
        writer.add_sliding_window_pattern(local)
