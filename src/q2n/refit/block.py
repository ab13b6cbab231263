"""Refit of one block: what a layer-wise closed form cannot see.

After the linears of a block are quantized, their scales, the weights of the block's norms and, if
asked, the roundings are tuned toward the full-precision model's block output, from the block
input that the quantized prefix really gives. One layer can then make up for what another one of
its block loses, through the attention and the nonlinearity.

The loss is the squared error of each token relative to the token's own energy, averaged over
tokens: a plain mean would see little but the few tokens with massive activations.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from q2n.layers.quantized import QuantizedLinear
from q2n.models.calls import BlockInput
from q2n.refit.tuner import Call, Rates, Refit, Tuned, shuffled, tune

Window = tuple[BlockInput, Float[Tensor, "*window h"]]
"""What a block is called with for one window, and the output to reach."""


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
        name: str,
        seed: int,
    ) -> Tuned:
        """The block's layers and norm weights, tuned; `block` itself stays as it is.

        Args:
            layers: by the block's own names.
            windows: the `count` calibration windows by number.

        Raises:
            NumericalError: the loss is not finite; names the block.
        """
        order = shuffled(count, self.steps, seed)

        def loss(call: Call, step: int) -> Tensor:
            inputs, target = windows(order[step])
            return relative_error(inputs.run(call).hidden, target)

        return tune(block, layers, self.rates, self.steps, loss, name=name)


def relative_error(
    output: Float[Tensor, "*window h"], target: Float[Tensor, "*window h"]
) -> Float[Tensor, ""]:
    """Mean over tokens of |output - target|^2 / |target|^2."""
    target = target.float()
    error = (output.float() - target).square().sum(-1)
    return (error / target.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)).mean()
