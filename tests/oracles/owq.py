"""OWQ from its definition: every candidate and every column in a loop; numpy, float64."""

import numpy as np
import torch


def scale_zero_search(values, bits, symmetric, steps, storage=np.float32):
    """Best scale and zero point of one group among all candidates, and their criterion."""
    top = 2**bits - 1
    lo, hi = min(0.0, values.min()), max(0.0, values.max())
    if symmetric:
        hi = max(abs(lo), hi)
        lo = -hi
    if lo == 0 and hi == 0:
        lo, hi = -1.0, 1.0
    best = (np.inf, 0.0, 0)
    for i in range(1, steps + 1):
        scale = float(storage((hi - lo) * i / (steps * top)))
        for zero in [2 ** (bits - 1)] if symmetric else range(2**bits):
            best = min(best, (criterion(values, scale, zero, bits), scale, zero))
    return best[1], best[2], best[0]


def criterion(values, scale, zero, bits):
    """`sum |w - quantized|^2.4` of one group."""
    return (np.abs(rounded(values, scale, zero, bits) - values) ** 2.4).sum()


def rounded(values, scale, zero, bits):
    """Each value rounded to the nearest point of the grid."""
    return scale * (np.clip(np.rint(values / scale), -zero, 2**bits - 1 - zero))


def sensitivities(weight, tokens, bits, symmetric):
    """Energy of the input times energy of the rounding error, for every column."""
    error = np.array(
        [
            row - rounded(row, *scale_zero_search(row, bits, symmetric, 40)[:2], bits)
            for row in weight
        ]
    )
    return np.array(
        [(tokens[:, j] ** 2).sum() * (error[:, j] ** 2).sum() for j in range(len(error.T))]
    )


def owq(weight, tokens, *, bits, count, size, symmetric, act_order, damping):
    """The dequantized weight and the indices of its weak columns, the most sensitive first. Weak
    columns stay in full precision and compensate the error of the others. One scale and zero
    point per row and `size` columns."""
    m = weight.shape[1]
    importance = sensitivities(weight, tokens, bits, symmetric)
    ranked = sorted(range(m), key=lambda j: -importance[j])
    weak, others = ranked[:count], ranked[count:]
    if not act_order:
        others = sorted(others)
    steps = 100 if size == m else 40
    parameters = [[None] * -(-m // size) for _ in weight]
    for row, chosen in zip(weight, parameters, strict=True):
        for g in range(len(chosen)):
            own = [row[j] for j in range(g * size, min((g + 1) * size, m)) if j not in weak]
            chosen[g] = scale_zero_search(np.array(own or [0.0]), bits, symmetric, steps)[:2]
    order = others + weak
    gram = (tokens.T @ tokens)[np.ix_(order, order)]
    inverse = np.linalg.inv(gram + damping * np.diag(gram).mean() * np.eye(m))
    upper = np.linalg.cholesky(inverse).T
    work = weight[:, order].copy()
    for j in range(len(others)):
        g = order[j] // size
        quantized = [
            rounded(w, *chosen[g], bits) for w, chosen in zip(work[:, j], parameters, strict=True)
        ]
        error = (work[:, j] - quantized) / upper[j, j]
        work[:, j:] -= np.outer(error, upper[j, j:])
        work[:, j] = quantized
    dense = np.empty_like(work)
    dense[:, order] = work
    return dense, weak


def nullspace_alpha(weight, quantized, weak, tokens, start, ridge):
    """Eq 9 with exact weak columns, with the projector on the null space formed explicitly."""
    values, vectors = np.linalg.eigh(tokens.T @ tokens)
    null = vectors[:, np.argsort(-values)][:, start:]
    exact = quantized.copy()
    exact[:, weak] = weight[:, weak]
    target = weight - (weight - exact) @ (null @ null.T)
    rest = [j for j in range(weight.shape[1]) if j not in weak]
    target, scaled = target[:, rest], quantized[:, rest]
    # what the projection leaves of the error in the weak columns is no part of the fit
    return ((scaled * target).sum(1) + ridge) / ((scaled**2).sum(1) + ridge)


def minimised_output_alpha(weight, scaled, fixed, x, target, size, ridge):
    """One factor per row and `size` columns of `scaled` that minimises
    `|weight target - (fixed + alpha scaled) x|^2` plus the ridge over all tokens, by L-BFGS."""
    group = torch.arange(weight.shape[1]) // size
    count = int(group[-1]) + 1
    energy = ((x @ scaled.T) ** 2).sum(0)
    alpha = torch.full((len(weight), count), 0.3, dtype=weight.dtype, requires_grad=True)
    options = {"max_iter": 500, "tolerance_grad": 1e-13, "tolerance_change": 0}
    optimizer = torch.optim.LBFGS([alpha], line_search_fn="strong_wolfe", **options)

    def closure():
        optimizer.zero_grad()
        misfit = ((target @ weight.T - x @ (fixed + alpha[:, group] * scaled).T) ** 2).sum(0)
        hold = ridge * energy / count * ((alpha - 1) ** 2).sum(1)
        loss = ((misfit + hold) / energy).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return alpha.detach()
