r"""What the outputs of every layer count for the model's predictions, as a stage before the first
block.

With g the gradient of one window's -sum log p_y at the output of a layer, labels y drawn from the
model (backward.py), the stage sums `F = sum g^T g` over the tokens of as many windows as the
options say, for every target; damped as F is, more than some ten thousand tokens changed nothing.
It is the output's side of Fisher's matrix where that is taken as a Kronecker product (K-FAC;
Martens and Grosse 2015), and what kernels/row_segments.py feeds errors back by.

The last linears of a mixture's experts have one moment together. Their outputs are added up to one
tensor, so that the gradients there are the same but for the weight of the expert; one expert sees
few tokens, and 256 matrices of 7168 rows would be 50 GB.

The moments are stored beside the blocks, the last block's first, divided by their mean diagonal and
in float16: who reads them damps them. A run that is interrupted later takes them from there; one
that is interrupted while it sums begins to sum again.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from q2n.data.windows import TokenWindows
from q2n.distributed.ranks import Ranks
from q2n.linalg.moments import GramMoment
from q2n.linalg.products import as_factor
from q2n.logging import Reporter
from q2n.models.blocks import BlockwiseModel
from q2n.models.targets import Target
from q2n.pipeline.activations import FOLDER
from q2n.pipeline.backward import Backward
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.stopwatch import Stopwatch
from q2n.pipeline.store import RunStore


@dataclass(frozen=True)
class OutputGradients:
    """Finds the moments of all targets, or takes up what an earlier run has found."""

    options: LoopOptions
    reporter: Reporter

    def __call__(self, store: RunStore, model: BlockwiseModel, windows: TokenWindows) -> None:
        """Sum and store them, unless they are there.

        Raises:
            InputError: the folder cannot be written.
            ResumeError: what is stored is damaged.
        """
        blocks = len(model)
        if store.gradients.count() == blocks:
            return
        with (
            torch.no_grad(),
            self.reporter.bar("gradients", 2 * blocks) as bar,
            self._backward(model, windows, store.folder / FOLDER) as passes,
        ):
            stopwatch = Stopwatch()
            passes.to_the_end(bar)
            for index in reversed(range(blocks)):
                bar.detail(f"{model.block_name(index)}: gradients")
                found = _of_block(model, index, passes)
                facts = {"seconds": stopwatch.lap()}
                store.gradients.write(blocks - 1 - index, facts, save(found))
                bar.advance()

    def _backward(self, model: BlockwiseModel, windows: TokenWindows, folder: Path) -> Backward:
        count = self.options.gradient_windows(len(windows), windows.length)
        return Backward(
            model,
            windows.spread(count),
            self.options,
            folder,
            draws=1,
            without="use --output-feedback false",
        )


def stored_gradients(
    store: RunStore, ranks: Ranks, model: BlockwiseModel, index: int
) -> dict[str, Float[Tensor, "out out"]]:
    """What was found for the targets of a block, by their names in it, on every rank.

    Raises:
        ResumeError: what is stored is damaged, or not there.
    """
    data = b""
    if ranks.is_first:
        place = len(model) - 1 - index
        data = store.gradients.tensors(place, store.gradients.read(place))
    moments = load(ranks.gather(data)[0] if ranks.are_several else data)
    targets, _ = model.targets_of(index, model.blocks[index])
    return {name: moments[target.output] for name, target in targets.items()}


def _of_block(
    model: BlockwiseModel, index: int, passes: Backward
) -> dict[str, Float[Tensor, "out out"]]:
    block = model.load_block(index)
    model.read_ahead(index - 1)
    targets, _ = model.targets_of(index, block)
    moments = {
        target.output: GramMoment.none(target.shape[0], model.device) for target in targets.values()
    }
    with _watched(targets.values(), moments):
        for _ in passes.through(index, block):
            pass
    return {name: _divided(moments.pop(name)) for name in [*moments]}


@contextmanager
def _watched(targets: Iterable[Target], moments: Mapping[str, GramMoment]) -> Iterator[None]:
    """While open, gradients that come to the outputs of the targets are added to their moments."""

    def add(moment: GramMoment, gradient: Float[Tensor, "*batch out"]) -> None:
        moment.add(as_factor(gradient, torch.float32), gradient.dtype)

    def watch(moment: GramMoment, module: Any, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(partial(add, moment))

    handles = [
        target.module.register_forward_hook(partial(watch, moments[target.output]))
        for target in targets
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _divided(moment: GramMoment) -> Float[Tensor, "out out"]:
    """In units of the mean diagonal. Where no gradient came it stays 0."""
    matrix = moment.matrix(torch.float32)
    mean = matrix.diagonal().mean()
    return (matrix / torch.where(mean > 0, mean, 1.0)).half().cpu()
