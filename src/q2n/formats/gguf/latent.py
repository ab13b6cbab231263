"""Attention with latent keys and values (MLA) in a GGUF file.

DeepSeek-V2 makes the keys and values of all heads of one short vector by a matrix, `kv_b_proj`.
llama.cpp knows two forms of it (src/models/deepseek2.cpp): two stacks of matrices, those for the
keys transposed, with which it stores the short vectors alone; or the matrix as it is, with which it
stores keys and values of all heads. Rows of blocks cannot be transposed, so the matrix is written
as it is; the file says so by sizes of heads that are those of keys and values.
"""

from typing import Any

from gguf import GGUFWriter

_EPS = 1e-6
_WITHOUT_RANK = (26, 27)


def add_latent(writer: GGUFWriter, config: Any) -> None:
    """Write the entries of a configuration that has no `latent_problem`."""
    writer.add_key_length(config.qk_head_dim)
    writer.add_value_length(config.v_head_dim)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_q_lora_rank(config.q_lora_rank or 0)


def latent_problem(config: Any) -> str | None:
    """What llama.cpp would compute otherwise, or None."""
    heads = config.num_attention_heads
    if config.num_key_value_heads != heads:
        return f"num_key_value_heads is {config.num_key_value_heads}, and there it is {heads}"
    if config.rms_norm_eps != _EPS:
        return (
            f"rms_norm_eps is {config.rms_norm_eps}, which transformers does not take for the "
            f"norms of latent vectors, and there it is that of all norms; {_EPS} would do"
        )
    if config.q_lora_rank and config.num_hidden_layers in _WITHOUT_RANK:
        return (
            f"it has latent queries (q_lora_rank {config.q_lora_rank}), and there models of "
            f"{config.num_hidden_layers} layers have none"
        )
    return None
