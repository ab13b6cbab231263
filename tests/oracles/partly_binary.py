"""PB-LLM as it is written down: numpy, one weight at a time."""

import numpy as np

from oracles import minmax, rtn
from oracles.codebook import feedback_sweep, pivots

DEGREES = {"2bit": 2, "4bit": 4}


def low_mask(weight, gram, *, saliency, fraction, size, damping):
    """Sort each group of columns over all rows; low up to and with the entry at floor(f count)."""
    price = np.abs(weight)
    if saliency == "hessian":
        price = weight**2 / pivots(gram, np.arange(len(gram)), damping) ** 2
    mask = np.zeros(weight.shape, dtype=bool)
    for a in range(0, weight.shape[1], size):
        block = price[:, a : a + size]
        threshold = sorted(block.flatten())[int(fraction * block.size)]
        mask[:, a : a + size] = block <= threshold
    return mask


def low_levels(weight, mask, kind, size):
    """For each row and group the list of its low levels."""
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
    mask = low_mask(weight, gram, saliency=saliency, fraction=fraction, size=size, damping=damping)
    levels = low_levels(weight, mask, kind, size)
    scale, zero = minmax(weight, 8, False)

    def round_column(values, column):
        found = np.empty_like(values)
        for i, x in enumerate(values):
            near = levels[i][column // size]
            high = rtn(np.array([x]), scale[i], zero[i], 8)[0]
            found[i] = near[np.abs(near - x).argmin()] if mask[i, column] else high
        return found

    if feedback:
        order = np.arange(weight.shape[1])
        return mask, feedback_sweep(weight, gram, order, damping, round_column)
    columns = [round_column(weight[:, j], j) for j in range(weight.shape[1])]
    return mask, np.stack(columns, 1)
