"""The parts of QuaRot from their definitions: Hadamard matrices, Kronecker products, rounding."""

import numpy as np


def is_hadamard(matrix):
    """True if all entries are +-1 and any two rows agree in exactly half of them."""
    entries = set(np.unique(matrix).tolist())
    n = len(matrix)
    agree = [int((matrix[i] == matrix[j]).sum()) for i in range(n) for j in range(i)]
    return entries <= {1.0, -1.0} and matrix.shape == (n, n) and all(2 * a == n for a in agree)


def kronecker_product(factors, signs=None):
    """The dense Kronecker product; a factor is a matrix, or the size of an identity."""
    full = np.eye(1)
    for factor in factors:
        full = np.kron(full, np.eye(factor) if isinstance(factor, int) else np.asarray(factor))
    return full if signs is None else full * np.asarray(signs)[None, :]


def per_token(x, bits, symmetric, size, clip):
    """Activation quantization per token and group, value by value."""
    result = np.zeros_like(x)
    for row, out in zip(x.reshape(-1, x.shape[-1]), result.reshape(-1, x.shape[-1]), strict=True):
        for a in range(0, len(row), size):
            out[a : a + size] = _one_group(row[a : a + size], bits, symmetric, clip)
    return result


def _one_group(values, bits, symmetric, clip):
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = clip * max(abs(v) for v in values) / top or 1.0
        return [scale * min(max(round(v / scale), -top - 1), top) for v in values]
    top = 2**bits - 1
    lo, hi = clip * min(0.0, *values), clip * max(0.0, *values)
    scale = (hi - lo) / top or 1.0
    zero = round(-lo / scale)
    return [scale * (min(max(round(v / scale) + zero, 0), top) - zero) for v in values]


def signed_scale(row, bits, steps=80):
    """The scale of one row by a clip search: p = 1 - i/100, s = p max / top, |error|^2.4."""
    top = 2 ** (bits - 1) - 1
    largest = np.abs(row).max()
    best, scale = np.inf, None
    for i in range(steps):
        tried = (1 - i / 100) * largest / top
        rounded = tried * np.clip(np.round(row / tried), -top - 1, top)
        error = (np.abs(rounded - row) ** 2.4).sum()
        if error < best:
            best, scale = error, tried
    return scale
