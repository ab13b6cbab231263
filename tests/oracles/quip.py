"""QuIP from its definition: numpy, float64, one column at a time."""

import numpy as np


def ldl(hessian):
    """The unit lower factor of `H = L D L^T`: the Cholesky factor divided by its diagonal."""
    lower = np.linalg.cholesky(hessian)
    return lower / np.diag(lower)


def centred_scale(weight, clip_sigma):
    """The half-width of the grid: `clip_sigma` times the root mean square of the weight."""
    return clip_sigma * np.sqrt((weight**2).mean())


def gaussian_error(bits, clip_sigma):
    """Expected squared error of a standard normal variable on 2^bits equally spaced levels from
    -clip_sigma to clip_sigma."""
    return level_error(np.linspace(-clip_sigma, clip_sigma, 2**bits))[0]


def level_error(levels):
    """Expected squared error of a standard normal variable rounded to the nearest level, and its
    mean in the cell of each level."""
    x = np.linspace(-8, 8, 400_001)
    density = np.exp(-x * x / 2)
    cell = np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
    means = np.bincount(cell, density * x) / np.bincount(cell, density)
    return (density * (x - levels[cell]) ** 2).sum() / density.sum(), means


def ldlq_centred(weight, hessian, bits, scale, *, clamp_first):
    """LDLQ on the levels `scale (2 k / (2^b - 1) - 1)`. Returns the codes `k`, and the weight in
    units of codes."""
    top = 2**bits - 1
    v = (weight / scale + 1) / 2 * top
    if clamp_first:
        v = v.clip(0, top)
    strict = ldl(hessian) - np.eye(len(hessian))
    codes = np.zeros_like(v)
    for i in reversed(range(v.shape[1])):
        pushed = v[:, i] + (v[:, i + 1 :] - codes[:, i + 1 :]) @ strict[i + 1 :, i]
        codes[:, i] = np.floor(pushed + 0.5).clip(0, top)
    return codes, v


def ldlq_levels(weight, hessian, levels):
    """LDLQ on any levels. Returns the indices of the levels."""
    strict = ldl(hessian) - np.eye(len(hessian))
    rounded, codes = np.zeros_like(weight), np.zeros(weight.shape, dtype=int)
    for i in reversed(range(weight.shape[1])):
        pushed = weight[:, i] + (weight[:, i + 1 :] - rounded[:, i + 1 :]) @ strict[i + 1 :, i]
        codes[:, i] = np.abs(pushed[:, None] - levels).argmin(1)
        rounded[:, i] = levels[codes[:, i]]
    return codes


def coordinate_descent_pass(v, codes, hessian, top):
    """One pass of coordinate descent over the codes, from the last column to the first. `v` is
    the weight in units of codes."""
    codes = codes.copy()
    for i in reversed(range(v.shape[1])):
        residual = codes - v
        best = np.floor(codes[:, i] - residual @ hessian[:, i] / hessian[i, i] + 0.5)
        codes[:, i] = best.clip(0, top)
    return codes


def kronecker(first, second, into, out):
    """The dense matrix `P_out (B1 (x) B2) P_in`. If a factor has several blocks, index `i` along
    the other axis uses block `i mod count`."""
    p, q = first.shape[1], second.shape[1]
    on_p, on_q = np.zeros((p * q, p * q)), np.zeros((p * q, p * q))
    for a in range(p):
        for b in range(q):
            for k in range(p):
                on_p[a * q + b, k * q + b] = first[b % len(first)][a, k]
            for k in range(q):
                on_q[a * q + b, a * q + k] = second[a % len(second)][b, k]
    identity = np.eye(p * q)
    return identity[out] @ on_q @ on_p @ identity[into]


def rescaling(weight, gram):
    """The diagonal rescaling s of the input columns."""
    hessian = gram / np.abs(gram).max()
    norms = (weight**2).sum(0)
    return (np.maximum(np.diag(hessian), 1e-8) / np.maximum(norms, 1e-8)) ** 0.25


def preprocessed(weight, gram, s, left, right, damping, projection_damping):
    """W and H after rescaling by `s`, rotation by the dense matrices `left` and `right`, and both
    dampings, in the order of the released code."""
    m = len(gram)
    hessian = gram / np.abs(gram).max()
    scaled = np.diag(1 / s) @ hessian @ np.diag(1 / s)
    scaled = scaled * m / np.trace(scaled) + projection_damping * np.eye(m)
    rotated = right @ scaled @ right.T
    rotated = rotated + damping * np.diag(rotated).mean() * np.eye(m)
    return left @ (weight * s) @ right.T, rotated
