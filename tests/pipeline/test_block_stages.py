"""Which stages the settings ask for, and what each sees of the state."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_model
from torch import nn

from q2n.data.windows import TokenWindows
from q2n.errors import InputError
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.methods.gptq import GPTQ
from q2n.methods.ptq161 import PTQ161
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import BlockCall, Hidden
from q2n.models.recording import BatchInputs
from q2n.models.sites import Site
from q2n.models.source import open_source
from q2n.models.targets import targets_in
from q2n.pipeline.activations import InMemory
from q2n.pipeline.block_stages import EachRound
from q2n.pipeline.block_state import BlockState
from q2n.pipeline.facts import BlockFacts
from q2n.pipeline.finish import Store, advance
from q2n.pipeline.fit_factors import FitFactors
from q2n.pipeline.learn_ranges import LearnRanges
from q2n.pipeline.measure import Measure
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.passes import PausingBlock
from q2n.pipeline.quantize import Quantize
from q2n.pipeline.refit_block import RefitBlock
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.pipeline.streams import Stream, StreamThroughBlock
from q2n.refit.block import BlockRefit


def loop_in(folder, method, *, refit=None, **options) -> SequentialLoop:
    store = RunStore(folder)
    store.start({}, {}, resume=False)
    blocks = BlockwiseModel(open_source(tiny_model(layers=2)))
    return SequentialLoop(blocks, method, store, LoopOptions(**options), refit=refit)


@pytest.mark.parametrize(
    ("method", "refit", "in_round", "after"),
    [
        (RTN(bits=4), None, [Quantize], [Store]),
        (GPTQ(bits=4), None, [Measure, Quantize], [Store]),
        (RTN(bits=4), BlockRefit(), [Quantize], [RefitBlock, Store]),
        (GPTQ(bits=4), BlockRefit(), [Measure, Quantize], [RefitBlock, Store]),
    ],
)
def test_the_settings_choose_the_stages(tmp_path, method, refit, in_round, after):
    first, *rest, last = loop_in(tmp_path, method, refit=refit).stages
    assert isinstance(first, EachRound) and last is advance
    assert [type(stage) for stage in first.stages] == in_round
    assert [type(stage) for stage in rest] == after


def test_a_methods_own_fits_have_their_stages(tmp_path):
    learned = loop_in(tmp_path / "ranges", GPTQ(bits=4, clip="learned"), refit=BlockRefit()).stages
    kinds = [LearnRanges, EachRound, RefitBlock, Store]
    assert [type(stage) for stage in learned[:-1]] == kinds
    fitted = loop_in(tmp_path / "factors", PTQ161()).stages
    assert [type(stage) for stage in fitted[:-1]] == [EachRound, FitFactors, Store]


@pytest.mark.parametrize(
    ("true_sequential", "rounds", "layers_before"),
    [(True, [[0], [1], [2], [3]], [0, 3, 4, 6]), (False, [[0, 1, 2, 3]], [0])],
)
def test_a_stage_between_sees_statistics_and_layers(
    tmp_path, true_sequential, rounds, layers_before
):
    """The place for a rewrite: measured, not yet quantized."""
    loop, seen = loop_in(tmp_path, GPTQ(bits=4), true_sequential=true_sequential), []

    def rewrite(state):
        assert list(state.statistics) == list(state.round)
        assert all(statistics.tokens == 96 for statistics in state.statistics.values())
        names = {name for site in state.round for name in state.sites[site].targets}
        assert not names & state.layers.keys()
        seen.append((list(state.round), len(state.layers)))
        return state

    each_round = loop.stages[0]
    measure, quantize = each_round.stages
    loop.stages[0] = replace(each_round, stages=[measure, rewrite, quantize])
    tokens = torch.randint(3, 128, (6, 16), generator=torch.Generator().manual_seed(3))
    loop.run(TokenWindows(tokens=tokens, label="random tokens"))
    assert seen == 2 * list(zip(rounds, layers_before, strict=True))


class Gated(nn.Module):
    """A block that calls one of its linears for inputs of a negative sum alone."""

    def __init__(self):
        super().__init__()
        self.idle, self.busy = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, hidden):
        return self.busy(self.idle(hidden) if hidden.sum() < 0 else hidden)


def gated_state(*batches) -> BlockState:
    block, device = Gated(), torch.device("cpu")
    sites = [Site(("idle",), 4), Site(("busy",), 4)]
    stream = Stream(InMemory(device, device), 2 * len(batches))
    for batch in batches:
        stream.open(BatchInputs(batch, [BlockCall.of(Hidden())], {}, len(batch)))
    return BlockState(
        index=0,
        name="blocks.0",
        is_last=True,
        block=block,
        targets=targets_in(block),
        sites=sites,
        passes=[StreamThroughBlock(stream, PausingBlock(block, sites), 0)],
        say=lambda text: None,
        round=[0, 1],
        facts=BlockFacts(block="blocks.0"),
    )


def test_a_layer_that_no_token_reached_is_named():
    measure = Measure(RequiredStatistics.GRAM, LoopOptions(), torch.device("cpu"))
    ones = torch.ones(1, 2, 4)
    with torch.no_grad():
        statistics = measure(gated_state(ones, -ones)).statistics
        assert [statistics[site].tokens for site in (0, 1)] == [2, 4]
        with pytest.raises(InputError, match=r"blocks\.0\.idle: no token .* --ignore"):
            measure(gated_state(ones, ones))
