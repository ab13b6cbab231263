"""The stage that measures: statistics of the inputs of one round of sites, over all batches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from q2n.errors import InputError
from q2n.linalg.forward_products import forward_products
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.models.sites import one_stage
from q2n.pipeline.block_state import BlockState
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.passes import BlockPass
from q2n.pipeline.streams import StreamThroughBlock

OF_BOTH = RequiredStatistics.CROSS | RequiredStatistics.SIZES
"""What is read of the full-precision model's input too. Where nothing is, its stream stays at the
input of the block until its output is wanted."""


@dataclass(frozen=True)
class Measure:
    """Runs every batch up to the sites of the round."""

    required: RequiredStatistics
    options: LoopOptions
    device: torch.device

    def __call__(self, state: BlockState) -> BlockState:
        """Measure one round.

        Raises:
            InputError: no token reached a site.
            NumericalError: NaN or Inf in an input.
        """
        return usable(self.sums(state))

    def sums(self, state: BlockState) -> BlockState:
        """Measure one round on the windows of these streams, which may be a part of the text."""
        statistics = {site: self._empty(state, site) for site in state.round}
        state.say(f"{state.name}: inputs of {state.sites[state.round[0]].targets[0]}")
        reached = dict.fromkeys(state.round, 0)
        passes = state.passes if self.required & OF_BOTH else state.passes[:1]
        with forward_products(self.device):
            for batch in range(len(passes[0].stream)):
                running = [stream.take(batch) for stream in passes]
                for other in running[1:]:
                    other.follow(running[0])
                for site in state.round:
                    inputs, *full = [one.input_at(site) for one in running]
                    if inputs is not None:  # an idle expert gets none
                        full = _scaled(state, site, full)
                        streams = [one.stream_at(state.sites[site]) for one in running if full]
                        statistics[site].update(inputs, *full, *_as_read(streams, inputs))
                        reached[site] += running[0].reached
                _lay_aside(state, passes, batch, running)
        return replace(state, statistics=statistics, reached={**state.reached, **reached})

    def _empty(self, state: BlockState, site: int) -> InputStatistics:
        width = state.sites[site].width
        stream = state.passes[0].stream
        return InputStatistics(
            width,
            self.required,
            self.device,
            cross_stride=self.options.cross_stride(stream.tokens, width),
            outputs=self._outputs(state, site),
            share=self.options.stream_share,
            first_window=stream.first_window,
        )

    def _outputs(self, state: BlockState, position: int) -> int:
        """Rows of the layer that writes to a residual stream which is to be made up for."""
        site = state.sites[position]
        return 0 if site.stream is None else state.targets[site.targets[0]].shape[0]


def _scaled(state: BlockState, site: int, full: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The full-precision stream's inputs of a site as a rewrite has scaled those of the block."""
    scale = state.scales.get(state.sites[site].targets[0])
    return [x if x is None or scale is None else x / scale for x in full]


def _as_read(streams: Sequence[Tensor | None], inputs: Tensor) -> list[Tensor | None]:
    """The streams with their tokens in the shape in which a layer reads its own."""
    shape = inputs.shape[:-1]
    return [x if x is None else x.reshape(*shape, x.shape[-1]) for x in streams]


def usable(state: BlockState) -> BlockState:
    """The state, whose statistics are complete.

    Raises:
        InputError: no token reached a site.
        NumericalError: NaN or Inf in an input.
    """
    for site, statistics in state.statistics.items():
        _require_usable(statistics, state.full_name(state.sites[site].targets[0]))
    return state


def _lay_aside(
    state: BlockState,
    passes: Sequence[StreamThroughBlock],
    batch: int,
    running: Sequence[BlockPass],
) -> None:
    """Leave the passes of a batch paused where the next round can go on from them."""
    for stream, one in zip(passes, running, strict=True):
        if one_stage([state.sites[site] for site in state.round]):
            stream.keep(batch, one)
        else:  # it has used weights that are about to change
            one.close()


def _require_usable(statistics: InputStatistics, name: str) -> None:
    if statistics.tokens == 0:
        raise InputError(
            f"{name}: no token of the calibration text reached it, so there is nothing to quantize "
            "it by; give more text, for an expert an --expert-shrinkage above 0 or --all-experts, "
            "or leave it in full precision with --ignore"
        )
    statistics.require_finite(name)
