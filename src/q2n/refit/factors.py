"""Factors of all linears of a block, learned together on what the block gives (PTQ1.61).

With y the block's output from the input that the quantized prefix gives, and the two outputs F of
the full-precision block, from the full-precision model's input and from the same input as y,

    loss = sum over both F of  mean |y - F|^2 - ln |mean over tokens of cos(y, F)|.

The factors: layers/learned_factors.py.
"""

from collections.abc import Callable, Mapping

from torch import nn

from q2n.layers.learned_factors import FactorFit, LearnedFactors
from q2n.layers.quantized import QuantizedLinear
from q2n.layers.salient_columns import SalientColumnsLinear
from q2n.refit.block import Window
from q2n.refit.epochs import fit_in_epochs, squared_and_direction
from q2n.refit.loss_change import LossChange, rose


def learn_factors(
    block: nn.Module,
    layers: Mapping[str, QuantizedLinear],
    windows: Callable[[int], Window],
    count: int,
    fit: FactorFit,
    *,
    name: str,
) -> tuple[dict[str, QuantizedLinear], LossChange]:
    """The layers with their factors learned, and what that does to the mean loss of all windows.
    Where it rises, they are as they came.

    Args: as of `fit_in_epochs`, which raises the same.
    """
    forms = {key: LearnedFactors(_with_factors(x)) for key, x in layers.items()}
    descent = fit_in_epochs(
        block,
        forms,
        [
            ([form.magnitude for form in forms.values()], fit.magnitude_rate),
            ([x for form in forms.values() for x in (form.row, form.column)], fit.factor_rate),
        ],
        windows,
        count,
        fit.epochs,
        squared_and_direction,
        name=name,
        without="another --method",
    )
    if rose(*descent.change):
        return dict(layers), descent.change
    return {key: form.quantized() for key, form in forms.items()}, descent.change


def _with_factors(layer: QuantizedLinear) -> SalientColumnsLinear:
    assert isinstance(layer, SalientColumnsLinear), "the method said that it stores such layers"
    return layer
