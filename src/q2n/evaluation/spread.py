r"""A mean over a text and how far another text of the same kind would move it.

The means of the windows are taken as independent draws: se = std(means) / sqrt(windows). Tokens are
not: those of one passage are hard or easy together, and an error that treats them as independent
comes out too small.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def window_means(
    values: Float[Tensor, " tokens"], counts: Int64[Tensor, " windows"]
) -> Float[Tensor, " parts"]:
    """Of `counts` values of each window, one window after the other. Where windows overlap, the
    first has more values than the others: it counts as so many windows as they would fill."""
    counts = _alike(counts)
    windows = torch.arange(len(counts)).repeat_interleave(counts)
    return values.new_zeros(len(counts)).index_add_(0, windows, values) / counts


def _alike(counts: Int64[Tensor, " windows"]) -> Int64[Tensor, " parts"]:
    """Counts with those that exceed the least by far cut into parts of about that size."""
    parts = (counts / counts.min()).round().long()
    number = torch.arange(int(parts.sum())) - (parts.cumsum(0) - parts).repeat_interleave(parts)
    whole, rest = (x.repeat_interleave(parts) for x in (counts // parts, counts % parts))
    return whole + (number < rest)


def error_of_mean(means: Float[Tensor, " windows"]) -> float | None:
    """The standard error; None of a single window, which does not tell."""
    return float(means.std()) / math.sqrt(len(means)) if len(means) > 1 else None
