"""The turn of one block as a list of stages over one state, built once from the settings.

    rewrite                      scales move between weights; the block computes what it did
    learn ranges                 where the method asks for it, toward the full-precision output
    for each round of sites:     one site (of experts, one group) with true_sequential, else all
        measure                  passes run to the sites; their inputs become statistics
        quantize                 every target of the sites takes its new weight
    fit factors                  where the method asks for it, toward the full-precision output
    refit                        scales and norm weights, toward the full-precision output
    store                        the block is on disk
    advance                      the passes run to the end: the inputs of the next block

A stage that changes what ran before a site (a norm's weight) must come before the passes have
started or drop the paused ones, which have used the old one. What it changes of what is not
quantized goes into `norm_weights`, which are stored.

With several ranks the stages of a round are those of among_ranks.py, and the first rank stores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from q2n.distributed.ranks import Ranks
from q2n.method import Method
from q2n.models.sites import Site, one_stage
from q2n.pipeline.among_ranks import Assign, MeasureAmongRanks, QuantizeAmongRanks
from q2n.pipeline.block_state import BlockStage, BlockState
from q2n.pipeline.finish import Store, advance
from q2n.pipeline.fit_factors import FitFactors
from q2n.pipeline.learn_ranges import LearnRanges
from q2n.pipeline.measure import Measure
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.quantize import Quantize
from q2n.pipeline.refit_block import RefitBlock
from q2n.pipeline.rewrite_block import RewriteBlock
from q2n.refit.block import BlockRefit


@dataclass(frozen=True)
class EachRound:
    """Runs some stages once for each round of sites."""

    stages: Sequence[BlockStage]
    one_site: bool
    """A round is one site, or those of experts that are computed together; else all of them,
    measured before any of their targets is quantized."""

    def __call__(self, state: BlockState) -> BlockState:
        for together in self._rounds(state.sites):
            state = run_stages(self.stages, replace(state, round=together))
        return state

    def _rounds(self, sites: Sequence[Site]) -> list[list[int]]:
        """Positions of the sites of each round; no round where nothing is to be quantized."""
        rounds: list[list[int]] = []
        for position, site in enumerate(sites):
            if rounds and (not self.one_site or one_stage([sites[rounds[-1][0]], site])):
                rounds[-1].append(position)
            else:
                rounds.append([position])
        return rounds


def run_stages(stages: Sequence[BlockStage], state: BlockState) -> BlockState:
    """One stage after another."""
    for stage in stages:
        state = stage(state)
    return state


def block_stages(
    method: Method,
    options: LoopOptions,
    refit: BlockRefit | None,
    rewrite: RewriteBlock | None = None,
    *,
    device: torch.device,
    scale_dtype: torch.dtype,
    store: Store,
    ranks: Ranks,
) -> list[BlockStage]:
    """The stages that these settings ask for, in order; the first rank stores."""
    required = method.required_statistics
    measure = Measure(required, options, device)
    quantize = Quantize(method, options, scale_dtype)
    each_round: list[BlockStage] = [
        *([measure] if required else []),
        quantize,
    ]
    if ranks.are_several:
        each_round = [
            Assign(ranks),
            *([MeasureAmongRanks(measure, ranks)] if required else []),
            QuantizeAmongRanks(quantize, ranks, device),
        ]
    ranges, factors = method.range_fit, method.factor_fit
    return [
        *([rewrite] if rewrite is not None else []),
        *([LearnRanges(ranges, scale_dtype)] if ranges is not None else []),
        EachRound(each_round, options.true_sequential),
        *([FitFactors(factors)] if factors is not None else []),
        *([RefitBlock(refit, options)] if refit is not None else []),
        *([store] if ranks.is_first else []),
        advance,
    ]
