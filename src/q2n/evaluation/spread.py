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
) -> Float[Tensor, " windows"]:
    """Of `counts` values of each window, one window after the other."""
    windows = torch.arange(len(counts)).repeat_interleave(counts)
    return values.new_zeros(len(counts)).index_add_(0, windows, values) / counts


def error_of_mean(means: Float[Tensor, " windows"]) -> float | None:
    """The standard error; None of a single window, which does not tell."""
    return float(means.std()) / math.sqrt(len(means)) if len(means) > 1 else None
