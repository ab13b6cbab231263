"""Which statistics of a layer's input there are to ask for, and the memory of their sums."""

import enum
from typing import Final

import torch

from q2n.linalg.triangle import triangle_size

SUM: Final = torch.float64
"""The dtype of sums (statistics.py says why)."""


class RequiredStatistics(enum.Flag):
    """Which statistics of a layer's input a method reads."""

    NONE = 0
    GRAM = enum.auto()
    """`G = sum x^T x`."""
    CROSS = enum.auto()
    """`R = D - G`; reading `D = sum x_full^T x` takes GRAM as well."""
    POSITIONS = enum.auto()
    """The mean activation at each token position, over sequences of one length."""
    FOLDS = enum.auto()
    """The moments of two halves of the windows by themselves (folds.py)."""
    SIZES = enum.auto()
    """Mean and largest |x_full| of every channel, of `x` where there is no `x_full`."""


def bytes_of_sums(required: RequiredStatistics, width: int, outputs: int = 0) -> int:
    """Of the moments of a site of this width while tokens are added; `outputs` as in
    `InputStatistics`."""
    gram = triangle_size(width) if RequiredStatistics.GRAM in required else 0
    residual = width**2 if RequiredStatistics.CROSS in required else 0
    folds = 2 if RequiredStatistics.FOLDS in required else 1
    return SUM.itemsize * folds * (gram + residual + outputs * width)
