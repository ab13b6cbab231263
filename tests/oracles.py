"""Slow, plain transcriptions of the definitions. They share no code with the package."""

import numpy as np
import torch


def projected_alpha(weight, quantized, gram, start, ridge):
    """Eq 9 with the projector on the null space formed explicitly; float64, row by row."""
    vectors = torch.linalg.eigh(gram)[1].flip(1)
    null = vectors[:, start:]
    projector = null @ null.T
    target = weight - (weight - quantized) @ projector
    rows = zip(quantized, target, strict=True)
    return torch.stack([(q @ h + ridge) / (q @ q + ridge) for q, h in rows])


def minimised_alpha(weight, quantized, gram, start, ridge):
    """The minimiser of Eq 8, found by L-BFGS on the loss as it is written down."""
    null = torch.linalg.eigh(gram)[1].flip(1)[:, start:]
    target = weight - (weight - quantized) @ (null @ null.T)
    alpha = torch.full((len(weight),), 0.3, dtype=weight.dtype, requires_grad=True)

    def loss():
        fit = ((target - alpha[:, None] * quantized) ** 2).sum()
        return fit + ridge * ((alpha - 1) ** 2).sum()

    optimizer = torch.optim.LBFGS(
        [alpha],
        max_iter=500,
        tolerance_grad=1e-13,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return alpha.detach()


def adam_alpha(weight, quantized, gram, start, ridge, steps=20, rate=2e-3):
    """The released GPTQ's solver: Adam on the loss of Eq 8, by automatic differentiation."""
    null = torch.linalg.eigh(gram)[1].flip(1)[:, start:]
    target = weight - (weight - quantized) @ (null @ null.T)
    alpha = torch.ones(len(weight), dtype=weight.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([alpha], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        fit = ((target - alpha[:, None] * quantized) ** 2).sum()
        (fit + ridge * ((alpha - 1) ** 2).sum()).backward()
        optimizer.step()
    return alpha.detach()


def paper_start(values, threshold):
    """Kept directions by Eq 6, one k at a time (1-based as in the paper)."""
    mu = list(values[1:])
    for k in range(1, len(mu) + 1):
        if sum(mu[:k]) > 0 and sum(mu[k:]) / sum(mu[:k]) <= threshold:
            return k + 1
    return 1


def released_start(values, threshold):
    """The released code's index: one value belongs to neither sum."""
    s = list(values[1:])
    for j in range(len(s) - 1):
        if sum(s[: j + 1]) > 1e-12 and sum(s[j + 2 :]) / sum(s[: j + 1]) <= threshold:
            return j + 2
    return 0


def minmax(values, bits, symmetric, storage=np.float32):
    """Scale and zero point of each row of `values`, METHODS' rules for a range."""
    top = 2**bits - 1
    scales, zeros = [], []
    for row in values:
        lo, hi = min(0.0, row.min()), max(0.0, row.max())
        if symmetric:
            hi = max(abs(lo), hi)
            lo = -hi if lo < 0 else lo
        if lo == 0 and hi == 0:
            lo, hi = -1.0, 1.0
        scale = float(storage((hi - lo) / top))
        scales.append(scale)
        zeros.append(2 ** (bits - 1) if symmetric else float(np.clip(np.rint(-lo / scale), 0, top)))
    return np.array(scales), np.array(zeros)


def rtn(values, scale, zero, bits):
    """`s (clamp(round(x / s) + z, 0, 2^b - 1) - z)`."""
    return scale * (np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1) - zero)


def gptq(weight, gram, *, bits, group_size, symmetric, act_order, static_groups, damping):
    """GPTQ as it is written down: explicit inverse, its Cholesky factor, and every later
    column updated after each column. Returns the dense quantized weight, and for each
    visited column the working copy as it stood before that column was rounded."""
    work = weight.copy()
    rows, m = weight.shape
    size = m if group_size == -1 else group_size
    order = np.argsort(-np.diag(gram), kind="stable") if act_order else np.arange(m)
    parameters = {
        g: minmax(weight[:, g * size : (g + 1) * size], bits, symmetric)
        for g in range(-(-m // size))
    }
    work = work[:, order]
    damped = gram[np.ix_(order, order)] + damping * np.diag(gram).mean() * np.eye(m)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    quantized = np.zeros_like(work)
    history = []
    for j in range(m):
        history.append(work.copy())
        group = order[j] // size
        if not static_groups and j % size == 0:
            parameters[group] = minmax(work[:, j : j + size], bits, symmetric)
        quantized[:, j] = rtn(work[:, j], *parameters[group], bits)
        error = (work[:, j] - quantized[:, j]) / upper[j, j]
        work[:, j:] -= np.outer(error, upper[j, j:])
    back = np.argsort(order)
    return quantized[:, back], [state[:, back] for state in history], order


def clip_search(values, bits, symmetric):
    """GPTQ's `mse` search on one group, one candidate at a time: its least criterion."""
    lo, hi = min(0.0, values.min()), max(0.0, values.max())
    if symmetric:
        hi = max(abs(lo), hi)
        lo = -hi if lo < 0 else lo
    best = np.inf
    for step in range(80):
        shrink = 1 - step / 100
        scale = float(np.float32(shrink * (hi - lo) / (2**bits - 1)))
        zero = 2 ** (bits - 1) if symmetric else np.rint(-shrink * lo / scale)
        best = min(best, (np.abs(rtn(values, scale, zero, bits) - values) ** 2.4).sum())
    return best
