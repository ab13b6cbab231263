"""Tiny random models of real architectures, and a tokenizer for them."""

from pathlib import Path

import torch
from tiny_recurrent import RECURRENT
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 128

_LLAMA_LIKE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_SIZES = {
    "opt": {"hidden_size": 64, "ffn_dim": 96, "num_attention_heads": 4, "word_embed_proj_dim": 64},
    "gpt_neox": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4},
    "phi": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4},
    "gpt2": {"n_embd": 64, "n_inner": 96, "n_head": 4},
    "bloom": {"hidden_size": 64, "n_head": 4},
    "falcon": {"hidden_size": 64, "num_attention_heads": 4, "alibi": True},
    "mpt": {"d_model": 64, "n_heads": 4, "expansion_ratio": 2},
    "gptj": {"n_embd": 64, "n_head": 4, "rotary_dim": 8},
    "openai-gpt": {"n_embd": 64, "n_head": 4},
    "rwkv": {"hidden_size": 64, "attention_hidden_size": 64, "intermediate_size": 96},
}
_SHARED_KEYS = {
    **_LLAMA_LIKE,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_SIZES |= {
    "gemma4_text": _SHARED_KEYS,
    "gemma3n_text": {
        **_SHARED_KEYS,
        "intermediate_size": [96] * 4,
        "laurel_rank": 8,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "glm_moe_dsa": {
        **_LLAMA_LIKE,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_topk": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
}
_SIZES |= RECURRENT
ARCHITECTURES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "phi",
    "phi3",
    "opt",
    "gpt_neox",
)
SHARED_KEYS = ("gemma3n_text", "gemma4_text")
"""The last two of their four blocks read keys and values of the first two."""
CONVENTIONS = (
    *SHARED_KEYS,
    "bloom",
    "falcon",
    "glm_moe_dsa",
    "gptj",
    "mpt",
    "openai-gpt",
    "rwkv",
)
"""Architectures whose blocks take or return more than hidden states and masks."""
TRANSPOSED = ("gpt2",)
"""Architectures that store their weights [in, out]: no packed format holds them."""


def tiny_model(
    architecture: str = "llama", *, layers: int = 3, seed: int = 0, **options
) -> PreTrainedModel:
    """A randomly initialised model with weights large enough to make it nonlinear."""
    sizes = _SIZES.get(architecture, _LLAMA_LIKE)
    config = AutoConfig.for_model(
        architecture,
        **{
            **sizes,
            "vocab_size": VOCABULARY,
            "num_hidden_layers": layers,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **options,
        },
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model


def tiny_seeing_model(*, layers: int, tower: dict[str, int], **text) -> PreTrainedModel:
    """A Gemma 3 with a vision tower of these sizes beside its text model."""
    config = Gemma3Config(
        text_config={
            **_LLAMA_LIKE,
            "vocab_size": VOCABULARY,
            "num_hidden_layers": layers,
            "max_position_embeddings": 128,
            **text,
        },
        vision_config={"image_size": 28, "patch_size": 14, **tower},
        image_token_index=100,
        boi_token_index=101,
        eoi_token_index=102,
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    return Gemma3ForConditionalGeneration(config).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with VOCABULARY entries."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=alphabet,
    )
    tokenizer.train_from_iterator([tiny_text(50)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def tiny_text(sentences: int = 400) -> str:
    """Deterministic text of short words."""
    words = "the of law null space error weight row scale code grid input output layer".split()
    state, text = 7, []
    for _ in range(sentences * 9):
        state = (1103515245 * state + 12345) % 2**31
        text.append(words[(state >> 16) % len(words)])
    return " ".join(text)


def save_tiny(folder: Path, architecture: str = "llama", **options) -> Path:
    """A checkpoint folder of a tiny model with its tokenizer."""
    tiny_model(architecture, **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
