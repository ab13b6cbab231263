"""Steps on the orthogonal matrices from their definitions, in float64."""

import numpy as np


def cayley_transform(q: np.ndarray, gradient: np.ndarray, length: float) -> np.ndarray:
    """(I - a/2 W)^-1 (I + a/2 W) Q with the skew part W of -G Q^T."""
    turn = gradient @ q.T
    skew = -(turn - turn.T) / 2
    one = np.eye(len(q))
    return np.linalg.solve(one - length / 2 * skew, (one + length / 2 * skew) @ q)


def released_step(r: np.ndarray, gradient: np.ndarray, lr: float) -> np.ndarray:
    """SpinQuant's step, line by line: SGDG of facebookresearch/SpinQuant, momentum 0, without its
    retractions at random. Its rows are multiplied by R from the right, so R is our Q^T."""
    unity = r / np.sqrt((r**2).sum(1, keepdims=True))
    v = -gradient.T
    mx = v @ unity
    xmx = unity @ mx
    xxmx = unity.T @ xmx
    w_hat = mx - 0.5 * xxmx
    w = w_hat - w_hat.T
    t = 0.5 * 2 / (np.abs(w).sum(0).max() + 1e-8)
    alpha = min(t, lr)
    x = unity.T
    y = x + alpha * v
    for _ in range(5):
        y = x + alpha * (w @ (0.5 * (x + y)))
    return y.T


def length_of(q: np.ndarray, gradient: np.ndarray, rate: float) -> float:
    """How long a step may be."""
    turn = gradient @ q.T
    return min(rate, 2 / (np.abs(turn - turn.T).sum(0).max() + 2e-8))
