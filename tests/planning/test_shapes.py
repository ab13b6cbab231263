"""What a dry run sees, beside what a real run does."""

import pytest
import torch
from tiny import tiny_model

from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import BlockInput
from q2n.models.config_source import ConfigSource
from q2n.models.sites import find_sites
from q2n.models.source import open_source
from q2n.planning.shapes import Growth, ModelShapes, shapes_of

ARCHITECTURES = ("llama", "gpt2", "opt", "phi", "bloom", "gemma2", "gemma4_text", "rwkv")


def shapes(architecture: str, **options) -> ModelShapes:
    config = tiny_model(architecture, layers=4, **options).config
    return shapes_of(BlockwiseModel(ConfigSource(config, architecture, "auto")))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sites_are_those_of_a_real_run(architecture):
    model = tiny_model(architecture, layers=4)
    blocks = BlockwiseModel(open_source(model))
    inputs = next(blocks.record_inputs([torch.arange(8).unsqueeze(0)]))
    block = blocks.load_block(0)
    targets, _ = blocks.targets_of(0, block)
    expected = find_sites(
        block, targets, BlockInput(inputs.hidden, inputs.calls[0], inputs.carried)
    )
    seen = shapes(architecture).blocks[0].sites
    assert [tuple(m.name for m in site.matrices) for site in seen] == [x.targets for x in expected]
    assert [site.width for site in seen] == [site.width for site in expected]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "deepseek_v3"])
def test_bytes_are_those_of_the_model(architecture):
    options = {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 8, "v_head_dim": 16}
    how = options | {"qk_nope_head_dim": 8, "head_dim": 8} if architecture == "deepseek_v3" else {}
    model = tiny_model(architecture, layers=4, **how)
    found = shapes_of(BlockwiseModel(ConfigSource(model.config, architecture, "auto")))
    assert found.bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert found.head_bytes in (0, model.get_output_embeddings().weight.nbytes)


def test_experts_read_a_share_of_tokens():
    both, down = (x for x in shapes("mixtral").blocks[0].sites if x.copies > 1)
    assert (both.copies, both.share) == (down.copies, down.share) == (8, 0.25)
    assert [(x.rows, x.columns) for x in both.matrices] == [(96, 64)] * 2
    assert [(x.rows, x.columns) for x in down.matrices] == [(64, 96)]


def test_a_pass_holds_what_llama_keeps():
    """In float32: before q the normed input; before o that, q, k, v and the attention's output,
    q and k turned; before gate the residual and its norm; before down these and the product."""
    sites = shapes("llama").blocks[0].sites
    held = [site.held.linear / 4 for site in sites]
    assert held == [64, 64 + 64 + 32 + 32 + 64, 2 * 64, 2 * 64 + 96]
    assert all(site.held.square == 0 for site in sites)


def test_attention_without_a_kernel_holds_all_pairs():
    """Of one head of BLOOM: its scores."""
    assert shapes("bloom").blocks[0].sites[1].held.square >= 4 * 4


def test_growth_goes_through_both_lengths():
    grown = Growth.through(32 * (5 + 3 * 32), 64 * (5 + 3 * 64))
    assert grown == Growth(5.0, 3.0)
    assert grown.at(200.0, 100) == 200 * (5 + 300)
