"""Tiny mixtures of experts, as transformers builds them."""

import torch
from tiny import tiny_model

from q2n.models import deepseek  # noqa: F401 - registers a model type
from q2n.models.loading_plan import fused_parts

EXPERTS = {
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
}
_SMALL = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
_LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
_GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
_LINEAR_ATTENTION = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
MIXTURES = {
    "mixtral": {},
    "qwen2_moe": _SMALL,
    "qwen3_moe": _SMALL,
    "olmoe": {"num_key_value_heads": 4},
    "phimoe": {},
    "deepseek": _SMALL | {"num_key_value_heads": 4, "n_shared_experts": 2},
    "deepseek_v2": _LATENT | _SMALL | _GROUPS | {"num_key_value_heads": 4},
    "deepseek_v3": _LATENT | _SMALL | _GROUPS | {"num_key_value_heads": 4},
    "glm4_moe": _SMALL | _GROUPS,
    "qwen3_next": _SMALL | _LINEAR_ATTENTION | {"mlp_only_layers": []},
    "qwen3_5_moe_text": _SMALL | _LINEAR_ATTENTION,
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "granitemoe": {},
    "gpt_oss": {"layer_types": ["full_attention"] * 2},
}
"""Architecture -> options; the last two keep experts fused in their files."""
FUSED = ("granitemoe", "gpt_oss")


def tiny_mixture(architecture="qwen3_moe", *, layers=2, **options):
    """Router and experts as random as the rest."""
    model = tiny_model(
        architecture, layers=layers, **{**EXPERTS, **MIXTURES[architecture], **options}
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 3:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model


def matrices(model):
    """Every expert's matrix in a model as transformers builds it, by its own name: views."""
    return {
        name: part.cut(model.get_parameter(fused)).detach()
        for fused, parts in fused_parts(model).items()
        for name, part in parts.items()
    }
