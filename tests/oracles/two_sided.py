"""YAQA's rounding (Tseng et al. 2025), one entry after the other."""

import numpy as np


def unit_upper(matrix):
    """U of `U D U^T`, U upper triangular with ones on the diagonal: by elimination from the end."""
    rest, factor = matrix.copy(), np.eye(len(matrix))
    for i in reversed(range(len(matrix))):
        factor[:i, i] = rest[:i, i] / rest[i, i]
        rest[:i, :i] -= np.outer(factor[:i, i], rest[i, :i])
    return factor


def rounded(weight, inputs, outputs, nearest):
    """Q for the loss tr(outputs E inputs E^T), E = W - Q: entry (i, j) is rounded from

    w_ij + [U_O'^T E U_I' + U_O'^T E + E U_I']_ij,    a prime for `without the diagonal`.
    """
    above = unit_upper(outputs) - np.eye(len(outputs))
    before = unit_upper(inputs) - np.eye(len(inputs))
    error, result = np.zeros_like(weight), np.empty_like(weight)
    for i in range(len(weight)):
        for j in range(weight.shape[1]):
            fed = above.T @ error @ before + above.T @ error + error @ before
            result[i, j] = nearest(i, weight[i, j] + fed[i, j])
            error[i, j] = weight[i, j] - result[i, j]
    return result
