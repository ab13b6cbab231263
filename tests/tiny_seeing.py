"""Tiny models with a vision tower, and one image each for them."""

from typing import Any

import torch
from tiny import VOCABULARY
from transformers import AutoConfig, AutoModelForMultimodalLM, PreTrainedModel

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
}
IMAGE, START = 100, 102
"""Tokens: one part of an image, and that an image begins."""
_QWEN = {
    "image_token_id": IMAGE,
    "video_token_id": 101,
    "vision_start_token_id": START,
    "vision_end_token_id": 103,
}
_LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
SEEING: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": {"model_type": "llama", **_TEXT},
        "vision_config": {"model_type": "clip_vision_model", **_TOWER},
        "image_token_id": IMAGE,
        "vision_feature_layer": -1,
    },
    "qwen2_5_vl": {
        "text_config": {**_TEXT, "rope_scaling": _ROPE},
        "vision_config": {**_QWEN_TOWER, "fullatt_block_indexes": [1], "window_size": 56},
        **_QWEN,
    },
    "qwen3_vl": {
        "text_config": {**_TEXT, "rope_parameters": _ROPE},
        "vision_config": {
            **_QWEN_TOWER,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **_QWEN,
    },
    "qwen3_5": {
        "text_config": {
            **_TEXT,
            **_LINEAR_ATTENTION,
            "rope_parameters": {**_ROPE, "partial_rotary_factor": 1.0},
        },
        "vision_config": {**_QWEN_TOWER, "num_position_embeddings": 16},
        **_QWEN,
    },
    "gemma3": {
        "text_config": _TEXT,
        "vision_config": _TOWER,
        "image_token_id": IMAGE,
        "mm_tokens_per_image": 4,
    },
}
"""By `model_type`."""


def tiny_seeing(architecture: str) -> PreTrainedModel:
    """A randomly initialized model, its linears large enough to matter."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **SEEING[architecture])
    model = AutoModelForMultimodalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model


def with_image(architecture: str) -> dict[str, torch.Tensor]:
    """A text of more than eight tokens with one image of four in it."""
    generator = torch.Generator().manual_seed(1)
    qwen = architecture.startswith("qwen")
    tokens = torch.tensor([[5, 6, START, *[IMAGE] * 4, 7, 8, 9, 10, 11]])
    here = (tokens == IMAGE).int()
    if qwen:
        patches = torch.randn(16, 3 * 2 * 14 * 14, generator=generator)
        grid = {"image_grid_thw": torch.tensor([[1, 4, 4]]), "mm_token_type_ids": here}
        return {"input_ids": tokens, "pixel_values": patches, **grid}
    image = {"pixel_values": torch.randn(1, 3, 28, 28, generator=generator)}
    types = {"token_type_ids": here} if architecture == "gemma3" else {}
    return {"input_ids": tokens, **image, **types}
