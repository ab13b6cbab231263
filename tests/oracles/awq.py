"""AWQ as published, step by step: the search of scales and of clipping bounds; numpy, float64."""

import numpy as np


def pseudo_quantized(weight, bits, group):
    """Asymmetric min-max, a range per row and `group` columns, which is not widened to hold 0."""
    values = weight.reshape(-1, group)
    high, low = values.max(1, keepdims=True), values.min(1, keepdims=True)
    top = 2**bits - 1
    scale = np.maximum(high - low, 1e-5) / top
    zero = np.clip(-np.rint(low / scale), 0, top)
    codes = np.clip(np.rint(values / scale) + zero, 0, top)
    return ((codes - zero) * scale).reshape(weight.shape)


def searched_scale(weights, tokens, bits, group, module):
    """The best scale of the channels of `tokens`, and the loss of every ratio.

    `module(weights, tokens)` is the module by whose output a ratio is judged."""
    magnitude = np.abs(tokens).mean(0)
    wanted = module(weights, tokens)
    best, losses = None, []
    for step in range(20):
        scale = np.maximum(magnitude ** (step / 20), 1e-4)
        scale = scale / np.sqrt(scale.max() * scale.min())
        tried = [pseudo_quantized(w * scale, bits, group) / scale for w in weights]
        losses.append(((wanted - module(tried, tokens)) ** 2).mean())
        if losses[-1] == min(losses):
            best = scale
    return best, losses


def clipped(weight, tokens, bits, group):
    """The weight, each row and group clamped to the bound of the least error of its partial sum."""
    result = weight.copy()
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], group):
            part = slice(start, start + group)
            values, x = weight[row, part], tokens[:, part]
            least, bound = np.inf, None
            for step in range(10):
                tried = np.abs(values).max() * (1 - step / 20)
                rounded = pseudo_quantized(np.clip(values, -tried, tried)[None], bits, group)[0]
                error = ((x @ rounded - x @ values) ** 2).mean()
                if error < least:
                    least, bound = error, tried
            result[row, part] = np.clip(values, -bound, bound)
    return result
