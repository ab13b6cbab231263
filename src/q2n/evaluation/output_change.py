r"""How far outputs are from those that they should be: of a layer, a block, a stream.

With Y what the original gives and Y' what stands in its place, tokens in rows,

    relative error = |Y' - Y|^2 / |Y|^2     a ratio of squares, over all tokens
    cosine         = mean over tokens of <y, y'> / (|y| |y'|)

A few tokens, the first of a window above all, have hidden states a thousand times as long as the
others'. They decide the relative error of a block; each counts once in the cosine.

Of a linear layer Y = X W^T and Y' = X Q^T on the same X, without the bias. Products are in float32,
and that of the difference Q - W is taken by itself, so that nothing cancels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from q2n.models.targets import Target, targets_in

Outputs = Float[Tensor, "*tokens width"]


@dataclass
class OutputChange:
    """Sums over tokens, which come in batches."""

    squares: float = 0.0
    """Of the change."""
    of_original: float = 0.0
    cosines: float = 0.0
    tokens: int = 0

    def add(self, original: Outputs, change: Outputs) -> None:
        """Count the tokens of a batch."""
        original, change = original.float(), change.float()
        self.squares += _total(change.square())
        self.of_original += _total(original.square())
        cosines = functional.cosine_similarity(original, original + change, dim=-1)
        self.cosines += _total(cosines.masked_fill(~change.any(-1), 1.0))  # 0 beside 0 too
        self.tokens += original[..., 0].numel()

    @property
    def relative_error(self) -> float:
        """0 for outputs that are all zero."""
        return self.squares / self.of_original if self.of_original else 0.0

    @property
    def cosine(self) -> float:
        """Of at least one token."""
        return self.cosines / self.tokens


def _total(numbers: Tensor) -> float:
    return float(numbers.sum(dtype=torch.float64))


@contextmanager
def watched_layers(original: nn.Module, quantized: nn.Module) -> Iterator[dict[str, OutputChange]]:
    """While it lasts, every run of the original block counts what its linears would give with the
    weights of the quantized one; by their names in the block. Equal weights are left out."""
    others, changes = targets_in(quantized), dict[str, OutputChange]()
    hooks = []
    for name, target in targets_in(original).items():
        if not torch.equal(target.weight(), others[name].weight()):
            changes[name] = OutputChange()
            count = partial(_count, changes[name], target, others[name])
            hooks.append(target.module.register_forward_hook(count))
    try:
        yield changes
    finally:
        for hook in hooks:
            hook.remove()


def _count(
    change: OutputChange, target: Target, other: Target, _: nn.Module, args: Any, __: Any
) -> None:
    """Hooks get the input as it reaches the matrix: rotated, if it is at runtime."""
    x, weight = args[0].float(), target.weight()
    change.add(functional.linear(x, weight), functional.linear(x, other.weight() - weight))
