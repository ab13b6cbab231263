"""Weighted k-means of one row, and LeanQuant, from their definitions: numpy, float64, loops."""

import itertools

import numpy as np


def cost(row, weight, centroids):
    """Weighted squared distance of all points to their nearest centroids."""
    return float((weight * ((row[:, None] - centroids[None, :]) ** 2).min(1)).sum())


def lloyd(row, weight, start, steps=100, tolerance=1e-6):
    """Lloyd's iteration. The first empty cluster moves to the point of the largest cost."""
    centroids = np.array(start, dtype=float)
    for _ in range(steps):
        label = ((row[:, None] - centroids[None, :]) ** 2).argmin(1)
        after = centroids.copy()
        for i in range(len(centroids)):
            mass = weight[label == i].sum()
            if mass > 0:
                after[i] = (weight * row)[label == i].sum() / mass
        empty = [i for i in range(len(centroids)) if weight[label == i].sum() == 0]
        costs = weight * (row - after[label]) ** 2
        if empty and costs.max() > 0:
            after[empty[0]] = row[costs.argmax()]
        after = np.sort(after)
        shift = ((after - centroids) ** 2).sum()
        centroids = after
        if shift <= tolerance * row.var():
            break
    return centroids


def best_partition(row, weight, count):
    """The smallest cost over all cuts of the sorted row into `count` intervals."""
    order = np.argsort(row)
    row, weight = row[order], weight[order]
    best = np.inf
    for cuts in itertools.combinations(range(1, len(row)), count - 1):
        total = 0.0
        for x, w in zip(np.split(row, cuts), np.split(weight, cuts), strict=True):
            total += (w * (x - (w * x).sum() / w.sum()) ** 2).sum()
        best = min(best, total)
    return best


def feedback_sweep(weight, gram, order, damping, round_column):
    """GPTQ from its definition, with any rounding: explicit inverse, and an update of all later
    columns after each. `round_column(values, column)` rounds the values of one column."""
    m = weight.shape[1]
    damped = gram + damping * np.diag(gram).mean() * np.eye(m)
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    work, quantized = weight[:, order].copy(), np.zeros_like(weight)
    for j, column in enumerate(order):
        quantized[:, column] = round_column(work[:, j], column)
        error = (work[:, j] - quantized[:, column]) / upper[j, j]
        work[:, j:] -= np.outer(error, upper[j, j:])
    return quantized


def pivots(gram, order, damping):
    """`U_jj` of every column, where U is the upper Cholesky factor of the damped inverse."""
    m = len(gram)
    damped = gram + damping * np.diag(gram).mean() * np.eye(m)
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    diagonal = np.empty(m)
    diagonal[order] = np.diag(upper)
    return diagonal


def leanquant(weight, gram, *, bits, exponent, damping, act_order):
    """k-means per row from equally spaced centroids, then GPTQ to the nearest centroid.

    Returns the dequantized weight and the centroids of every row."""
    order = np.argsort(-np.diag(gram), kind="stable") if act_order else np.arange(len(gram))
    omega = pivots(gram, order, damping) ** -exponent
    books = np.array(
        [lloyd(row, omega, np.linspace(row.min(), row.max(), 2**bits)) for row in weight]
    )

    def nearest(values, column):
        return np.array(
            [book[np.abs(book - x).argmin()] for book, x in zip(books, values, strict=True)]
        )

    return feedback_sweep(weight, gram, order, damping, nearest), books
