"""SmoothQuant's scale from its definition, channel by channel; numpy, float64."""

import numpy as np


def smoothed(weights, tokens, alpha):
    """The scale of every channel of `tokens`, which all of `weights` read."""
    scales = []
    for j in range(tokens.shape[1]):
        activation = max(abs(token[j]) for token in tokens)
        weight = max(max(abs(row[j]) for row in w) for w in weights)
        scale = max(activation**alpha / max(weight, 1e-5) ** (1 - alpha), 1e-5)
        scales.append(scale if activation > 0 else 1.0)
    return np.array(scales)
