"""DeepSeekMoE's forward pass in numpy, from the tensors of a checkpoint by their published names.

Dai et al. 2024 (arXiv 2401.06066); LLaMA's attention with rotary positions in two halves.
"""

import numpy as np


def logits(tensors, config, tokens):
    """Logits [length, vocabulary] of one sequence of token numbers."""
    heads, size = config["num_attention_heads"], config["head_dim"]
    stream = tensors["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        own = {
            key.removeprefix(f"model.layers.{layer}."): value
            for key, value in tensors.items()
            if key.startswith(f"model.layers.{layer}.")
        }
        x = _norm(stream, own["input_layernorm.weight"])
        q, k, v = (x @ own[f"self_attn.{name}_proj.weight"].T for name in "qkv")
        mixed = np.concatenate(
            [
                _attention(*(part[:, at : at + size] for part in (q, k, v)))
                for at in range(0, heads * size, size)
            ],
            1,
        )
        stream = stream + mixed @ own["self_attn.o_proj.weight"].T
        x = _norm(stream, own["post_attention_layernorm.weight"])
        stream = stream + np.stack([_mlp_or_experts(own, config, row) for row in x])
    return _norm(stream, tensors["model.norm.weight"]) @ tensors["lm_head.weight"].T


def _norm(x, weight):
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def _attention(q, k, v):
    length, size = q.shape
    angles = np.outer(np.arange(length), 10000.0 ** (-np.arange(0, size, 2) / size))
    q, k = (_turned(x, angles) for x in (q, k))
    out = np.zeros_like(v)
    for at in range(length):
        scores = k[: at + 1] @ q[at] / np.sqrt(size)
        weights = np.exp(scores - scores.max())
        out[at] = weights @ v[: at + 1] / weights.sum()
    return out


def _turned(x, angles):
    first, second = np.split(x, 2, 1)
    return np.concatenate(
        (
            first * np.cos(angles) - second * np.sin(angles),
            second * np.cos(angles) + first * np.sin(angles),
        ),
        1,
    )


def _mlp_or_experts(own, config, x):
    """Of one token: the dense MLP, or its best experts by weight and the shared ones."""
    if "mlp.gate_proj.weight" in own:
        return _mlp(own, "mlp", x)
    scores = own["mlp.gate.weight"] @ x
    scores = np.exp(scores - scores.max())
    scores /= scores.sum()
    best = np.argsort(scores)[::-1][: config["num_experts_per_tok"]]
    total = scores[best].sum() if config["norm_topk_prob"] else 1.0
    routed = sum(scores[e] / total * _mlp(own, f"mlp.experts.{e}", x) for e in best)
    return routed + _mlp(own, "mlp.shared_experts", x)


def _mlp(own, name, x):
    gate, up, down = (own[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
    gated = gate @ x
    return down @ (gated / (1 + np.exp(-gated)) * (up @ x))
