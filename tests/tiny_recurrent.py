"""Sizes of tiny models with state-space or linear-attention layers, all of four blocks."""

_DECODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_MAMBA = {"hidden_size": 64, "state_size": 8, "time_step_rank": 20, "expand": 2}
_HEADS = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
_LINEAR_ATTENTION = {
    **_DECODER,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
RECURRENT = {
    "mamba": _MAMBA,
    "falcon_mamba": _MAMBA,
    "mamba2": {
        "hidden_size": 64,
        "state_size": 16,
        "expand": 2,
        "num_heads": 8,
        "head_dim": 16,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "jamba": {
        **_DECODER,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 20,
    },
    "bamba": {**_DECODER, **_HEADS, "attn_layer_indices": [1, 3]},
    "falcon_h1": {**_DECODER, **_HEADS, "mamba_d_ssm": 128},
    "granitemoehybrid": {
        **_DECODER,
        **_HEADS,
        "layer_types": ["mamba", "attention"] * 2,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 96,
    },
    "nemotron_h": {
        **_DECODER,
        "layers_block_type": ["mamba", "attention", "mamba", "mlp"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "ssm_state_size": 16,
        "chunk_size": 8,
    },
    "zamba": {
        **_DECODER,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "attention_head_dim": 32,
        "mamba_d_state": 8,
        "mamba_dt_rank": 20,
        "n_mamba_heads": 2,
    },
    "zamba2": {
        **_DECODER,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "mamba_d_state": 16,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "adapter_rank": 8,
        "num_mem_blocks": 1,
        "chunk_size": 8,
    },
    "qwen3_next": {**_LINEAR_ATTENTION, "mlp_only_layers": [0, 1, 2, 3], "num_experts": 0},
    "qwen3_5_text": _LINEAR_ATTENTION,
}
"""By `model_type`; mixtures of experts have only dense layers."""
