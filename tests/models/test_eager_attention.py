"""A model's own attention without its weights: the same numbers, and nothing that stays."""

import gc

import pytest
import torch
from mixtures import tiny_mixture
from tiny import tiny_model

from q2n.models import eager_attention
from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import BlockInput
from q2n.models.eager_attention import let_weights_go
from q2n.models.sites import find_sites
from q2n.models.source import assemble, open_source
from q2n.models.targets import targets_in
from q2n.pipeline.passes import BlockPass, PausingBlock
from q2n.planning.shapes import shapes_of

MODELS = {
    "gemma2": lambda: tiny_model("gemma2"),
    "gpt_oss": lambda: tiny_mixture("gpt_oss"),
}
TOKENS = torch.arange(36).view(2, 18) + 3


def own_name(model):
    return model.config._attn_implementation


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_model_computes_the_same_to_the_bit(model):
    source = open_source(model())
    plain, changed = assemble(source), assemble(source)
    let_weights_go(changed)
    assert own_name(plain) == "eager" and own_name(changed) == eager_attention.NAME
    with torch.no_grad():
        assert torch.equal(changed(TOKENS).logits, plain(TOKENS).logits)
        returned = changed.model.layers[0].self_attn
        kept = []
        returned.register_forward_hook(lambda module, inputs, output: kept.append(output[1]))
        changed(TOKENS)
    assert kept == [None]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_pass_that_pauses_holds_no_weights(model):
    blocks = BlockwiseModel(open_source(model()))
    inputs = next(blocks.record_inputs([TOKENS]))
    block = blocks.load_block(0)
    given = BlockInput(inputs.hidden, inputs.calls[0], inputs.carried)
    sites = find_sites(block, targets_in(block), given)
    with torch.no_grad():
        running = BlockPass(PausingBlock(block, sites), given)
        for position in (1, len(sites) - 1):
            running.input_at(position)
            gc.collect()
            alive = [x for x in gc.get_objects() if type(x) is torch.Tensor]  # no dead proxies
            heads = [x for x in alive if x.ndim == 4 and x.shape[1] > 1]
            assert not [x for x in heads if x.shape[-2:] == (18, 18) and x.shape[0] == 2]
        running.finish()


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_plan_counts_none(model):
    shapes = shapes_of(BlockwiseModel(open_source(model())))
    assert all(site.held.square == 0 for block in shapes.blocks for site in block.sites)


def test_torch_s_own_attention_stays():
    model = assemble(open_source(tiny_model()))
    let_weights_go(model)
    assert own_name(model) == "sdpa"


def test_a_model_that_asks_whether_attention_is_eager_stays(monkeypatch):
    monkeypatch.setattr(
        eager_attention.inspect, "getsource", lambda file: 'if config == "eager": pass'
    )
    model = assemble(open_source(tiny_model("gemma2")))
    let_weights_go(model)
    assert own_name(model) == "eager"
