"""Ranges of all linears of a block, learned together on what the block gives (OmniQuant).

The loss of a window is the mean squared error of the block's output, its weights rounded on the
learned ranges, from the input that the quantized prefix gives,

    mean |block_q(x_q) - block(x)|^2   [ + mean |block_q(x_q) - block(x_q)|^2 ],

x the full-precision model's input. The grid and its two parameters per group:
grids/learned_range.py.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from q2n.grids.learned_range import Clipping, LearnedRange, RangeFit
from q2n.refit.block import Window
from q2n.refit.epochs import fit_in_epochs, mean_squared
from q2n.refit.loss_change import LossChange, rose


def learn_ranges(
    block: nn.Module,
    forms: Mapping[str, LearnedRange],
    windows: Callable[[int], Window],
    count: int,
    fit: RangeFit,
    *,
    name: str,
) -> tuple[dict[str, Clipping], LossChange]:
    """What is learned of the ranges of `forms`, and what that does to the mean loss of all
    windows. Where it rises, the ranges are those of the start.

    Args: as of `fit_in_epochs`, which raises the same.
    """
    descent = fit_in_epochs(
        block,
        forms,
        [([logits for form in forms.values() for logits in form.parameters()], fit.rate)],
        windows,
        count,
        fit.epochs,
        mean_squared,
        name=name,
        without="--clip minmax",
    )
    if rose(*descent.change):
        for form in forms.values():
            form.start_again()
    with torch.no_grad():
        return {key: form.clipping() for key, form in forms.items()}, descent.change
