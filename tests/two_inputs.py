"""Inputs of a layer behind a quantized prefix, for tests."""

import torch


def two_inputs(normal, tokens, columns, decay, noise):
    """(x, x_full), tokens as rows: x is x_full plus an error partly correlated with it.

    `normal(*shape)` draws; the energies of x_full's directions fall by `decay` decades."""
    spread = torch.logspace(0, -decay, columns, dtype=torch.float64)
    x_full = (normal(tokens, columns) * spread) @ torch.linalg.qr(normal(columns, columns))[0]
    error = x_full @ normal(columns, columns) / columns**0.5 + 0.3 * normal(tokens, columns)
    return x_full + noise * error, x_full
