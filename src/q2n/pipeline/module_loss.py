"""What weights that are tried lose at the output of a module.

    loss(W') = sum |F(x; W') - F(x; W)|^2,    x what the module F gets of some calibration windows

Only the block knows what the module is called with: it is run up to the module's end once for each
window, and after that the module by itself. Where blocks carry objects that they write into, a call
of the module alone would write too, and the block is run each time. Nothing of the block may change
between trials; each leaves the weights as they were.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from math import inf
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from q2n.linalg.forward_products import forward_products
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
        block, self._targets = through.block.block, targets
        self._passes = [
            _module_pass(block, block.get_submodule(module), window)
            for window in islice(_single_windows(through), windows)
        ]
        self._device = through.stream.hidden.device
        self._original = [
            (x, x.clone()) for x in (y.module.get_parameter("weight") for y in targets)
        ]
        self._wanted = list(self._outputs())

    def __call__(self, weights: Iterable[Float[Tensor, "_ in"]], most: float = inf) -> float:
        """The loss, or infinity once it is above `most`."""
        for target, weight in zip(self._targets, weights, strict=True):
            target.set(weight)
        lost = 0.0
        for got, wanted in zip(self._outputs(), self._wanted, strict=True):
            lost += float((got - wanted).square_().sum(dtype=torch.float64))
            if lost > most:
                lost = inf
                break
        for parameter, value in self._original:
            parameter.copy_(value)
        return lost

    def _outputs(self) -> Iterator[Float[Tensor, "..."]]:
        """Of the module, window by window, in float32."""
        for run in self._passes:
            with forward_products(self._device):
                output = run()
            yield first_tensor(pytree.tree_leaves(output)).float()


def _module_pass(block: nn.Module, module: nn.Module, window: BlockInput) -> Callable[[], Any]:
    """What runs one window through the module."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    hook = module.register_forward_pre_hook(keep, prepend=True, with_kwargs=True)
    try:
        _run_to(block, module, window)
    finally:
        hook.remove()
    if not calls or window.call.slots:
        return partial(_run_to, block, module, window)
    args, kwargs = calls[0]
    return partial(module, *args, **kwargs)


def _run_to(block: nn.Module, module: nn.Module, window: BlockInput) -> Any:
    """What the module gives in the block, or the block if it is not called."""
    outputs: list[Any] = []
    with _stopped_behind(module, outputs):
        outputs.append(window.run(block).hidden)
    return outputs[0]


class _Reached(Exception):  # noqa: N818 - no error
    """Ends a pass: what comes after is not wanted."""


@contextmanager
def _stopped_behind(module: nn.Module, outputs: list[Any]) -> Iterator[None]:
    """A pass ends where the module has given its output, which `outputs` takes."""

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(output)
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
