"""Tiny models of the kinds that can be rotated, and tokens for them."""

import torch
from tiny import VOCABULARY, tiny_model

MODELS = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "9 heads": (  # no Hadamard matrix of the heads, and 18 channels have an odd part of 9
        "llama",
        {"hidden_size": 90, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 10},
    ),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


def model_of(name="llama"):
    """A model whose norm weights and biases are not those of the initialisation."""
    architecture, options = MODELS[name]
    model = tiny_model(architecture, **options)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def tokens(length=40):
    return torch.randint(VOCABULARY, (2, length), generator=torch.Generator().manual_seed(2))
