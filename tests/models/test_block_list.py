"""The decoder's blocks among other lists of modules, and models that are refused."""

import pytest
import torch
from through_blocks import through_blocks
from tiny import tiny_model, tiny_seeing_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from q2n.errors import InputError
from q2n.models.block_list import find_blocks
from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import Returned
from q2n.models.source import open_source


def with_tower() -> PreTrainedModel:
    """A vision tower as deep as the text model, and larger."""
    tower = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4}
    return tiny_seeing_model(layers=2, tower={**tower, "num_hidden_layers": 2}, sliding_window=32)


def test_a_larger_tower_of_the_same_depth_is_not_the_decoder():
    model = with_tower()
    blocks = BlockwiseModel(open_source(model))
    assert blocks.block_name(1) == "model.language_model.layers.1"
    assert len(list(through_blocks(blocks, torch.arange(3, 19).view(2, 8)))) == 2


def test_lists_within_blocks_and_lists_of_layers_are_not_blocks():
    model = tiny_model(layers=2)
    for block in model.model.layers:
        block.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))
    model.model.projections = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
    assert find_blocks(model)[0] == "model.layers"


def test_a_tower_within_the_text_model_is_deeper():
    model = tiny_model(layers=2)
    model.model.tower = nn.ModuleDict({"layers": nn.ModuleList(model.model.layers)})
    assert find_blocks(model)[0] == "model.layers"


def test_blocks_that_lie_in_several_lists_are_refused():
    config = AutoConfig.for_model("xlm", emb_dim=64, n_layers=2, n_heads=4, n_words=128)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match=r"2 lists of 2 blocks \(transformer\.attentions, .*ffns"):
        BlockwiseModel(open_source(model))


def test_encoders_are_refused():
    config = T5Config(d_model=64, d_ff=96, d_kv=16, num_heads=4, num_layers=2, vocab_size=128)
    config.architectures = ["T5ForConditionalGeneration"]
    with pytest.raises(InputError, match="T5ForConditionalGeneration has an encoder"):
        BlockwiseModel(open_source(T5ForConditionalGeneration(config)))


def test_two_text_models_are_refused():
    config = AutoConfig.for_model("musicgen")
    model = tiny_model()
    model.config = config
    with pytest.raises(InputError, match="musicgen: it is not one text model"):
        find_blocks(model)


def recorded_with(loop, monkeypatch, first=torch.neg):
    """Record a tiny LLaMA whose loop over its blocks is replaced, and its first block."""
    model = tiny_model(layers=2)
    blocks = BlockwiseModel(open_source(model))
    inner = blocks._model.model

    def forward(input_ids, **kwargs):
        return loop(inner.layers, inner.embed_tokens(input_ids))

    monkeypatch.setattr(blocks._model, "forward", forward)
    monkeypatch.setattr(blocks._recorder, "first", lambda: first)
    return next(blocks.record_inputs([torch.arange(8).view(1, 8)]))


def test_a_loop_that_changes_hidden_states_is_refused(monkeypatch):
    with pytest.raises(InputError, match="changes the hidden states in front of block 1"):
        recorded_with(lambda blocks, x: blocks[1](2 * blocks[0](x)), monkeypatch)


def test_a_loop_that_repeats_or_leaves_out_blocks_is_refused(monkeypatch):
    with pytest.raises(InputError, match="calls block 0 when 1 is due"):
        recorded_with(lambda blocks, x: blocks[0](blocks[0](x)), monkeypatch)
    with pytest.raises(InputError, match="does not pass all 2 of its blocks"):
        recorded_with(lambda blocks, x: blocks[0](x), monkeypatch)


def test_a_view_of_all_hidden_states_is_no_change(monkeypatch):
    recorded = recorded_with(
        lambda blocks, x: blocks[1](blocks[0](x)[:, slice(0, None)]), monkeypatch
    )
    assert len(recorded.calls) == 2


def test_what_a_block_returns_is_passed_on_though_the_first_returns_none(monkeypatch):
    """Of GLM 5's blocks only some return the tokens that the next one attends to."""

    def loop(blocks, x):
        x, chosen = blocks[0](x, chosen=None)
        return blocks[1](x, chosen=chosen)

    block = lambda x, chosen: (x, None)  # noqa: E731
    first, second = recorded_with(loop, monkeypatch, block).calls
    assert not first.slots and second.slots == first.needed == {Returned(block=0, part=1)}
