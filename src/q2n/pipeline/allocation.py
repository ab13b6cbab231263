"""The widths of all layers as a stage of a run, before its first block.

What each width costs (bit_costs.py) is stored beside the blocks, under a checksum and a stem of its
own. A run that is interrupted later takes it from there; one that is interrupted while it measures
begins to measure again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from safetensors.torch import save

from q2n.data.windows import TokenWindows
from q2n.linalg.allocation import allocate
from q2n.logging import Reporter
from q2n.methods.allocated import Allocated
from q2n.models.blocks import BlockwiseModel
from q2n.option_types import Width
from q2n.pipeline.activations import FOLDER
from q2n.pipeline.bit_costs import BitCosts, Group
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.stopwatch import Stopwatch
from q2n.pipeline.store import RunStore


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """How the widths are found."""

    bits: float
    """Stored bits of a weight, on the average of all quantized layers."""
    options: LoopOptions
    scale_dtype: torch.dtype
    reporter: Reporter

    def __call__(
        self, store: RunStore, method: Allocated, model: BlockwiseModel, windows: TokenWindows
    ) -> Allocated:
        """The method with the width of each layer.

        Raises:
            InputError: fewer bits than all layers at their smallest width take; blocks of the model
                read more than the last one's output; or the folder cannot be written.
            NumericalError: a layer's statistics cannot be used, or its gradients are not finite.
            ResumeError: what is stored is damaged.
        """
        groups = self._groups(store, method, model, windows)
        shapes = {name: target.shape for name, target in model.targets().items()}
        weights = sum(prod(shapes[name]) for group in groups for name in group.layers)
        choices = {group.name: group.points for group in groups}
        widths = allocate(choices, self.bits * weights)
        self.reporter.note(_summary(groups, widths, weights))
        return method.with_widths(
            {name: widths[group.name] for group in groups for name in group.layers}
        )

    def _groups(
        self, store: RunStore, method: Allocated, model: BlockwiseModel, windows: TokenWindows
    ) -> list[Group]:
        if not store.costs.count():
            stopwatch = Stopwatch()
            found = BitCosts(method.trials, self.options, self.scale_dtype, self.reporter)
            groups = found(model, windows, store.folder / FOLDER)
            values = {
                "groups": [group.to_json() for group in groups],
                "seconds": stopwatch.lap(),
            }
            store.costs.write(0, values, save({}))
        return [Group.from_json(values) for values in store.costs.read(0)["groups"]]


def _summary(groups: Sequence[Group], widths: dict[str, Width], weights: int) -> str:
    """What comes of it, in one sentence without a full stop."""
    chosen = [group.points[widths[group.name]] for group in groups]
    bits, cost = sum(x.size for x in chosen) / weights, sum(x.cost for x in chosen)
    counts = {
        width: sum(len(group.layers) for group in groups if widths[group.name] == width)
        for width in groups[0].points
    }
    layers = ", ".join(f"{count} at {width}" for width, count in counts.items() if count)
    return f"Layers by width: {layers}; {bits:.3f} bits per weight, predicted divergence {cost:.3g}"
