"""A model that runs one block at a time says what the whole model says, to the bit."""

import weakref

import pytest
import torch
from formats.tiny_models import llama, quantized_in_memory, random_layers
from tiny import (
    ARCHITECTURES,
    CONVENTIONS,
    TRANSPOSED,
    save_tiny,
    tiny_model,
    tiny_seeing_model,
    tiny_text,
)
from transformers import AutoModelForCausalLM
from whole_way import quantize

from q2n.data.windows import TokenWindows
from q2n.errors import InputError
from q2n.evaluation.block_by_block import BlockByBlock
from q2n.evaluation.body import Whole
from q2n.formats import FORMATS
from q2n.formats.load import open_checkpoint
from q2n.models.blocks import BlockwiseModel
from q2n.models.head import Head
from q2n.models.source import open_source

WINDOWS = TokenWindows(
    tokens=torch.randint(3, 128, (5, 24), generator=torch.Generator().manual_seed(0)), label="x"
)


def assert_same(model, source, place="device", near=0.0):
    """States and logits of all windows, two at a time; within `near`, absolutely."""
    whole = Whole(model, WINDOWS)
    parts = BlockByBlock(BlockwiseModel(source), WINDOWS, place=place)
    with torch.no_grad():
        pairs = list(zip(whole.states(2), parts.states(2), strict=True))
        assert len(pairs) == len(WINDOWS)
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=0, atol=near)
            torch.testing.assert_close(whole.head(one), parts.head(other), rtol=0, atol=near)
    return parts


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *TRANSPOSED, *CONVENTIONS])
def test_states_are_those_of_the_whole_model(architecture):
    model = tiny_model(architecture, layers=4)
    near = 1e-5 if architecture == "glm_moe_dsa" else 0.0  # its experts are taken apart
    parts = assert_same(model, open_source(model), near=near)
    if architecture != "openai-gpt":
        assert isinstance(parts.head, Head)


@pytest.mark.parametrize("tied", [False, True])
def test_states_of_a_checkpoint_are_those_of_the_whole_model(tmp_path, tied):
    model = tiny_model("gemma2", tie_word_embeddings=tied, sliding_window=8)
    model.save_pretrained(tmp_path)
    assert_same(model, open_source(tmp_path), "disk")


def test_a_tower_beside_the_text_model_is_left_alone():
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    model = tiny_seeing_model(layers=2, tower={**tower, "num_attention_heads": 2})
    assert_same(model, open_source(model))


@pytest.mark.parametrize("name", ["compressed-tensors", "gptq_v2", "native", "dequantized"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_states_of_every_format_are_those_of_the_quantized_model(tmp_path, name, dtype):
    model = llama()
    layers = random_layers(model, 4, 32, False, torch.float16)
    FORMATS[name].write(tmp_path / "out", open_source(model), layers)
    expected = llama(dtype=dtype or torch.float32)
    expected.load_state_dict(quantized_in_memory(model, layers).state_dict())
    assert_same(expected, open_checkpoint(tmp_path / "out", dtype))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "quip", "bits": 2, "format": "native"},
        {"method": "quarot", "bits": 4, "format": "native"},
        {"rotate": "hadamard", "activation_bits": 8, "kv_bits": 4, "format": "native"},
    ],
)
def test_states_with_runtime_parts_are_those_that_transformers_makes(tmp_path, settings):
    save_tiny(tmp_path / "model")
    (tmp_path / "text.txt").write_text(tiny_text())
    done = quantize(tmp_path, "out", **{"output_scales": False, **settings})
    model = AutoModelForCausalLM.from_pretrained(done.directory)  # attaches them by its own hooks
    # in a random basis packed layers rotate the tokens, and never make the weight
    near = 1e-4 if settings.get("method") == "quip" else 0.0
    assert_same(model, open_checkpoint(done.directory), near=near)


def test_one_block_at_a_time_is_in_memory(monkeypatch, tmp_path):
    alive, load = weakref.WeakSet(), BlockwiseModel.load_block

    def loaded(model, index):
        assert len(alive) <= 1  # the one whose turn ends
        block = load(model, index)
        alive.add(block)
        return block

    monkeypatch.setattr(BlockwiseModel, "load_block", loaded)
    tiny_model(layers=6).save_pretrained(tmp_path)
    parts = BlockByBlock(BlockwiseModel(open_source(tmp_path)), WINDOWS)
    held = {name for name, x in parts.blocks.without_blocks.named_parameters() if not x.is_meta}
    assert held == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert not alive
    assert len(list(parts.states(2))) == len(WINDOWS)
    assert not alive


def test_a_model_that_is_no_chain_of_blocks_is_refused():
    with pytest.raises(InputError, match="one block at a time"):
        BlockByBlock(BlockwiseModel(open_source(tiny_model("rwkv", layers=7))), WINDOWS)
