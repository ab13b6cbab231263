"""Refit of one block: what a layer-wise closed form cannot see.

After the linears of a block are quantized, their scales, the weights of the block's norms and, if
asked, the roundings are tuned toward the full-precision model's block output, from the block
input that the quantized prefix really gives. One layer can then make up for what another one of
its block loses, through the attention and the nonlinearity.

The loss is the squared error of each token relative to the token's own energy, averaged over
tokens: a plain mean would see little but the few tokens with massive activations.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from q2n.layers.quantized import QuantizedLinear
from q2n.models.calls import BlockInput
from q2n.refit.descent import Call
from q2n.refit.tuner import Rates, Refit, Tuned, shuffled, tune


class Window(NamedTuple):
    """What a block is called with for one window, and what to reach."""

    inputs: BlockInput
    """What the quantized prefix gives."""
    full: Float[Tensor, "*window h"]
    """The full-precision model's output of the block."""
    own: Float[Tensor, "*window h"] | None = None
    """What the full-precision block makes of `inputs`, where it is asked for."""

    @property
    def targets(self) -> list[Float[Tensor, "*window h"]]:
        """The outputs to reach."""
        return [self.full] if self.own is None else [self.full, self.own]


@dataclass(frozen=True, kw_only=True)
class BlockRefit(Refit):
    """How each block is refitted."""

    rates: Rates = Rates(scale=0.005, norm=0.005, code=0.04)

    def __call__(
        self,
        block: nn.Module,
        layers: Mapping[str, QuantizedLinear],
        windows: Callable[[int], Window],
        count: int,
        *,
        fixed: Collection[str] = (),
        name: str,
        seed: int,
    ) -> Tuned:
        """The block's layers and norm weights, tuned; `block` itself stays as it is.

        Args:
            layers: by the block's own names.
            windows: the `count` calibration windows by number.
            fixed: parameters that stay, for they are another block's too.

        Raises:
            NumericalError: the loss is not finite; names the block.
        """
        order = shuffled(count, self.steps, seed)

        def loss(call: Call, step: int) -> Tensor:
            window = windows(order[step])
            return relative_error(window.inputs.run(call).hidden, window.full)

        return tune(block, layers, self.rates, self.steps, loss, fixed=fixed, name=name)


def relative_error(
    output: Float[Tensor, "*window h"], target: Float[Tensor, "*window h"]
) -> Float[Tensor, ""]:
    """Mean over tokens of |output - target|^2 / |target|^2."""
    target = target.float()
    error = (output.float() - target).square().sum(-1)
    return (error / target.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)).mean()
