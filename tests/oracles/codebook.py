"""k-means of one row and LeanQuant, as they are written down: numpy, float64, plain loops."""

import itertools

import numpy as np


def cost(row, weight, centroids):
    return float((weight * ((row[:, None] - centroids[None, :]) ** 2).min(1)).sum())


def lloyd(row, weight, start, steps=100, tolerance=1e-6):
    """Every point looks at every centroid. The first empty cluster moves to the dearest point."""
    centroids = np.array(start, dtype=float)
    for _ in range(steps):
        label = ((row[:, None] - centroids[None, :]) ** 2).argmin(1)
        after = centroids.copy()
        for i in range(len(centroids)):
            mass = weight[label == i].sum()
            if mass > 0:
                after[i] = (weight * row)[label == i].sum() / mass
        empty = [i for i in range(len(centroids)) if weight[label == i].sum() == 0]
        price = weight * (row - after[label]) ** 2
        if empty and price.max() > 0:
            after[empty[0]] = row[price.argmax()]
        after = np.sort(after)
        shift = ((after - centroids) ** 2).sum()
        centroids = after
        if shift <= tolerance * row.var():
            break
    return centroids


def best_partition(row, weight, count):
    """The least cost of all: every way to cut the sorted row into `count` intervals."""
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
    """GPTQ as it is written down: explicit inverse, every later column updated after each.
    `round_column(values, column)` gives the rounded values of a column of the layer."""
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
    """U_jj by column of the layer, U the upper Cholesky factor of the damped inverse."""
    m = len(gram)
    damped = gram + damping * np.diag(gram).mean() * np.eye(m)
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    found = np.empty(m)
    found[order] = np.diag(upper)
    return found


def leanquant(weight, gram, *, bits, exponent, damping, act_order):
    """Equally spaced start, Lloyd, sweep to the nearest centroid."""
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
