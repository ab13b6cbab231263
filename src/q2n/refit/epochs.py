"""Gradient steps on a block in epochs, as OmniQuant takes them and PTQ1.61 after it.

Every epoch takes the calibration windows in their order, one a step, at constant rates. The loss of
a window is the distance of the block's output, from the input that the quantized prefix gives, to
the full-precision model's output; where asked for, plus that to what the full-precision block makes
of the same input.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from q2n.models.targets import targets_in
from q2n.refit.block import Window
from q2n.refit.descent import Call, Course, Dense, Descent, Group, dense_weights, descend

Distance = Callable[[Tensor, Tensor], Float[Tensor, ""]]
"""Of an output from the one to reach."""


def fit_in_epochs(
    block: nn.Module,
    forms: Mapping[str, Dense],
    groups: Iterable[Group],
    windows: Callable[[int], Window],
    count: int,
    epochs: int,
    distance: Distance,
    *,
    name: str,
    without: str,
) -> Descent:
    """Fit the parameters of `forms`; `block` itself stays as it is.

    Args:
        forms: of the block's linears, by its own names.
        groups: their parameters with the rates of Adam.
        windows: the `count` calibration windows by number. All of them are the check.
        without: the flag that leaves the fit out, for messages.

    Raises:
        NumericalError: the loss is not finite; names the block.
    """

    def loss(call: Call, number: int) -> Float[Tensor, ""]:
        window = windows(number)
        output = window.inputs.run(call).hidden.float()
        return torch.stack([distance(output, goal.float()) for goal in window.targets]).sum()

    return descend(
        block,
        partial(dense_weights, targets_in(block), forms),
        groups,
        Course(steps=epochs * count),
        lambda call, step: loss(call, step % count),
        lambda call: torch.stack([loss(call, number) for number in range(count)]).mean(),
        name=name,
        without=without,
    )


def mean_squared(
    output: Float[Tensor, "*window h"], goal: Float[Tensor, "*window h"]
) -> Float[Tensor, ""]:
    """Mean over all entries of (output - goal)^2."""
    return mse_loss(output, goal)


def squared_and_direction(
    output: Float[Tensor, "*window h"], goal: Float[Tensor, "*window h"]
) -> Float[Tensor, ""]:
    """The same, less the logarithm of the size of the mean cosine of tokens."""
    cosine = cosine_similarity(output, goal, dim=-1).mean()
    return mse_loss(output, goal) - cosine.abs().log()
