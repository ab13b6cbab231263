"""Pausing passes compute what plain forward passes compute, and nothing twice."""

import gc
import weakref

import pytest
import torch
from tiny import tiny_model
from torch import nn

from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import BlockCall, BlockInput, Hidden
from q2n.models.sites import find_sites
from q2n.models.source import open_source
from q2n.models.targets import targets_in
from q2n.pipeline.passes import BlockPass, PausingBlock


@pytest.fixture
def stopped():
    """A block with pausing hooks, what it is called with and its sites."""
    model = BlockwiseModel(open_source(tiny_model()))
    inputs = next(model.record_inputs([torch.arange(32).reshape(2, 16) + 3]))
    block = model.load_block(0)
    given = BlockInput(inputs.hidden, inputs.calls[0], inputs.carried)
    return block, given, find_sites(block, targets_in(block), given)


def test_inputs_and_output_equal_a_plain_forward(stopped):
    block, given, sites = stopped
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        block.get_submodule(site.targets[0]).register_forward_pre_hook(
            lambda _, args, name=site.targets[0]: seen.setdefault(name, args[0])
        )
        for site in sites
    ]
    with torch.no_grad():
        expected = given.run(block).hidden
        for hook in hooks:
            hook.remove()
        running = BlockPass(PausingBlock(block, sites), given)
        for position, site in enumerate(sites):
            assert torch.equal(running.input_at(position), seen[site.targets[0]])
        assert torch.equal(running.finish().hidden, expected)


def test_a_pass_uses_weights_set_during_the_pause(stopped):
    block, given, sites = stopped
    with torch.no_grad():
        running = BlockPass(PausingBlock(block, sites), given)
        running.input_at(1)  # q, k, v have run
        before = block.self_attn.q_proj.weight.clone()
        block.self_attn.q_proj.weight.zero_()  # too late to matter
        block.self_attn.o_proj.weight.mul_(2)  # in time
        resumed = running.finish().hidden
        block.self_attn.q_proj.weight.copy_(before)
        expected = given.run(block).hidden
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)


def test_no_linear_runs_twice_or_too_early(stopped):
    block, given, sites = stopped
    runs: dict[str, int] = {}
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1})
            )
    with torch.no_grad():
        running = BlockPass(PausingBlock(block, sites), given)
        running.input_at(0)
        assert runs == {}
        running.input_at(2)
        assert set(runs) == {name for site in sites[:2] for name in site.targets}
        running.finish()
    assert set(runs.values()) == {1}
    assert len(runs) == 7


def test_a_site_that_is_not_visited_gives_none():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle, self.busy = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, hidden):
            if hidden.sum() < 0:
                hidden = self.idle(hidden)
            return (self.busy(hidden),)

    from q2n.models.sites import Site

    block = Gated()
    sites = [Site(("idle",), 4), Site(("busy",), 4)]
    hidden = torch.ones(1, 2, 4)
    with torch.no_grad():
        running = BlockPass(
            PausingBlock(block, sites), BlockInput(hidden, BlockCall.of(Hidden()), {})
        )
        assert running.input_at(0) is None
        assert torch.equal(running.input_at(1), hidden)
        assert torch.equal(running.finish().hidden, block.busy(hidden))


def test_a_closed_pass_frees_its_activations(stopped):
    block, given, sites = stopped
    with torch.no_grad():
        running = BlockPass(PausingBlock(block, sites), given)
        held = weakref.ref(running.input_at(3))
        assert held() is not None
        running.close()
    gc.collect()
    assert held() is None
