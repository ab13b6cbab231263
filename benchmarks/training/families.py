"""Small models of four families, with weights at random.

Every linear reads a multiple of 128 columns, so that groups of 64 and 128 divide it; those of the
llama read multiples of 256, as ggml's K types want. DeepSeek's latent attention has its usual
parts: heads of 64 columns without and 64 with positions, keys and values from 128 latent columns.
"""

from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    LlamaConfig,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from training.texts import WORDS

_ENDS = {"vocab_size": WORDS, "bos_token_id": 0, "eos_token_id": 0}
_HEADS = {"num_attention_heads": 4, "tie_word_embeddings": True}
_EXPERTS = {"num_experts_per_tok": 4, "moe_intermediate_size": 128, "hidden_size": 256}


def llama(length: int) -> PreTrainedConfig:
    """Without experts, twice as wide as the others."""
    return LlamaConfig(
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=length,
        tie_word_embeddings=True,
        **_ENDS,
    )


def qwen3_moe(length: int) -> PreTrainedConfig:
    """The best 4 of 16 experts, whose weights are made to sum to one."""
    return Qwen3MoeConfig(
        num_hidden_layers=4,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=16,
        norm_topk_prob=True,
        max_position_embeddings=length,
        **_EXPERTS | _HEADS | _ENDS,
    )


def deepseek_v2(length: int) -> PreTrainedConfig:
    """A dense layer, then three of 4 among 16 experts, and two experts that see every token."""
    return DeepseekV2Config(
        num_hidden_layers=4,
        first_k_dense_replace=1,
        intermediate_size=512,
        n_routed_experts=16,
        n_shared_experts=2,
        q_lora_rank=None,
        kv_lora_rank=128,
        qk_nope_head_dim=64,
        qk_rope_head_dim=64,
        v_head_dim=64,
        max_position_embeddings=length,
        **_EXPERTS | _HEADS | _ENDS,
    )


def mamba(length: int) -> PreTrainedConfig:
    """Mamba-1; it knows no positions."""
    return MambaConfig(hidden_size=256, num_hidden_layers=6, pad_token_id=0, **_ENDS)


FAMILIES = {
    "llama": llama,
    "moe-qwen": qwen3_moe,
    "moe-deepseek": deepseek_v2,
    "mamba": mamba,
}


def new_model(family: str, length: int) -> PreTrainedModel:
    """In float32; torch's seed decides the weights."""
    return AutoModelForCausalLM.from_config(FAMILIES[family](length))
