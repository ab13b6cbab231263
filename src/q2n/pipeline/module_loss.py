"""What weights that are tried lose at the output of a module.

    loss(W') = sum |F(x; W') - F(x; W)|^2,    x what the module F gets of some calibration windows

The block is run up to the module's end: only the block knows what the module is called with.
Nothing of the block may change between trials; each leaves the weights as they were.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from q2n.linalg.products import fast_products
from q2n.models.calls import BlockInput, first_tensor
from q2n.models.targets import Target
from q2n.pipeline.streams import StreamThroughBlock


class ModuleLoss:
    """A `Loss` (rewrites/rewrite.py) of some targets of one block."""

    def __init__(
        self,
        through: StreamThroughBlock,
        module: str,
        targets: Sequence[Target],
        windows: int,
    ):
        """
        Args:
            through: a stream at the input of the block.
            module: name in the block. One that is not called (a list) is judged by the block.
            targets: whose weights are tried.
            windows: how many count, from the first one; all if there are fewer.
        """
        self._block, self._targets = through.block.block, targets
        self._module = self._block.get_submodule(module)
        self._windows = list(islice(_single_windows(through), windows))
        self._original = [
            (x, x.clone()) for x in (y.module.get_parameter("weight") for y in targets)
        ]
        self._wanted = list(self._outputs())

    def __call__(self, weights: Iterable[Float[Tensor, "_ in"]]) -> float:
        for target, weight in zip(self._targets, weights, strict=True):
            target.set(weight)
        lost = sum(
            float((got - wanted).square_().sum(dtype=torch.float64))
            for got, wanted in zip(self._outputs(), self._wanted, strict=True)
        )
        for parameter, value in self._original:
            parameter.copy_(value)
        return lost

    def _outputs(self) -> Iterator[Float[Tensor, "..."]]:
        """Of the module, window by window, in float32."""
        for window in self._windows:
            reached: list[Tensor] = []
            with (
                _stopped_behind(self._module, reached),
                fast_products(window.hidden.device, torch.float32),
            ):
                reached.append(window.run(self._block).hidden)
            yield reached[0].float()


class _Reached(Exception):  # noqa: N818 - no error
    """Ends a pass: what comes after is not wanted."""


@contextmanager
def _stopped_behind(module: nn.Module, outputs: list[Tensor]) -> Iterator[None]:
    """A pass ends where the module has given its output, which `outputs` takes."""

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(first_tensor(pytree.tree_leaves(output)))
        raise _Reached

    hook = module.register_forward_hook(keep)
    try:
        with suppress(_Reached):
            yield
    finally:
        hook.remove()


def _single_windows(through: StreamThroughBlock) -> Iterator[BlockInput]:
    """The windows of a stream at the input of a block, one by one, so that it does not matter how
    they are batched."""
    stream = through.stream
    for batch in range(len(stream)):
        inputs, windows = stream.inputs(batch, through.index), stream.windows[batch]
        for row in range(windows):
            yield inputs.window(row, windows)
