"""The stage that learns ranges: before anything of a block is rounded, the ranges of all its grids
are fitted together to what the block gives."""

from dataclasses import dataclass, replace

import torch

from q2n.grids.learned_range import LearnedRange, RangeFit
from q2n.pipeline.block_state import BlockState
from q2n.pipeline.streams import BlockWindows, outputs_of
from q2n.refit.ranges import learn_ranges


@dataclass(frozen=True)
class LearnRanges:
    """Both streams stay at the input of the block."""

    fit: RangeFit
    scale_dtype: torch.dtype

    def __call__(self, state: BlockState) -> BlockState:
        """Learn the ranges of one block, which is still in full precision.

        Raises:
            NumericalError: the loss is not finite; names the block.
        """
        names = [name for site in state.sites for name in site.targets]
        if not names:
            return state
        state.say(f"{state.name}: ranges")
        quantized, full = state.passes
        original = full.block.block  # of the other one a rewrite may have clamped weights
        own = self.fit.both_targets
        windows = BlockWindows(
            quantized.stream,
            state.index,
            outputs_of(full.stream, original, state.index),
            outputs_of(quantized.stream, original, state.index) if own else None,
        )
        clipping, change = learn_ranges(
            state.block,
            {name: self._form(state, name) for name in names},
            windows,
            len(windows),
            self.fit,
            name=state.name,
        )
        facts = replace(state.facts, fit_loss=change)
        return replace(state, clipping=clipping, facts=facts)

    def _form(self, state: BlockState, name: str) -> LearnedRange:
        weight = state.targets[name].weight()
        return LearnedRange(self.fit.grid, weight, self.scale_dtype, state.full_name(name))
