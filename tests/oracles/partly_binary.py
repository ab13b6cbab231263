"""PB-LLM from its definition: numpy, one weight at a time."""

import numpy as np

from oracles import minmax, rtn
from oracles.codebook import feedback_sweep, pivots

DEGREES = {"2bit": 2, "4bit": 4}


def low_mask(weight, gram, *, saliency, fraction, size, damping):
    """True for low weights. In each group of columns, over all rows, the salience of a low weight
    is at most the sorted salience at index floor(fraction count)."""
    salience = np.abs(weight)
    if saliency == "hessian":
        salience = weight**2 / pivots(gram, np.arange(len(gram)), damping) ** 2
    mask = np.zeros(weight.shape, dtype=bool)
    for a in range(0, weight.shape[1], size):
        block = salience[:, a : a + size]
        threshold = sorted(block.flatten())[int(fraction * block.size)]
        mask[:, a : a + size] = block <= threshold
    return mask


def low_levels(weight, mask, kind, size):
    """The levels of the low weights, for each row and group."""
    levels = []
    for row in np.where(mask, weight, 0.0):
        groups = [row[a : a + size] for a in range(0, len(row), size)]
        if kind == "prune":
            levels.append([np.zeros(1) for _ in groups])
        elif kind == "sign":
            levels.append([np.abs(g).mean() * np.array([-1, 1]) for g in groups])
        elif kind == "xnor":
            levels.append(
                [g.mean() + np.abs(g - g.mean()).mean() * np.array([-1, 1]) for g in groups]
            )
        else:
            count = 2 ** DEGREES[kind]
            fits = [minmax(g[None], DEGREES[kind], False, np.float64) for g in groups]
            levels.append([s[0] * (np.arange(count) - z[0]) for s, z in fits])
    return levels


def pbllm(weight, gram, *, kind, fraction, saliency, size, damping, feedback):
    """The mask of low weights and the dequantized weight."""
    mask = low_mask(weight, gram, saliency=saliency, fraction=fraction, size=size, damping=damping)
    levels = low_levels(weight, mask, kind, size)
    scale, zero = minmax(weight, 8, False)

    def round_column(values, column):
        rounded = np.empty_like(values)
        for i, x in enumerate(values):
            low = levels[i][column // size]
            high = rtn(np.array([x]), scale[i], zero[i], 8)[0]
            rounded[i] = low[np.abs(low - x).argmin()] if mask[i, column] else high
        return rounded

    if feedback:
        order = np.arange(weight.shape[1])
        return mask, feedback_sweep(weight, gram, order, damping, round_column)
    columns = [round_column(weight[:, j], j) for j in range(weight.shape[1])]
    return mask, np.stack(columns, 1)
