"""Which layers write to the residual stream, and where it is seen before they do."""

import pytest
import torch
from tiny import tiny_model
from torch import nn

from q2n.models.blocks import BlockwiseModel
from q2n.models.residual_streams import BLOCK_INPUT, with_streams
from q2n.models.sites import find_sites
from q2n.models.source import open_source
from q2n.pipeline.streams import Probe

LLAMA = {"self_attn.o_proj": BLOCK_INPUT, "mlp.down_proj": "post_attention_layernorm"}
WRITERS = {
    "llama": LLAMA,
    "qwen3": LLAMA,
    "opt": {"self_attn.out_proj": BLOCK_INPUT, "fc2": "final_layer_norm"},
    "gemma2": {},  # each branch ends in a norm
    "phi": {},  # both branches are added at once
}


def streams_of(model):
    blocks = BlockwiseModel(open_source(model), torch.device("cpu"))
    tokens = torch.arange(8).unsqueeze(0)
    probe = Probe(next(blocks.record_inputs([tokens]))).at(0)
    block = blocks.load_block(0)
    targets, _ = blocks.targets_of(0, block)
    sites = with_streams(block, find_sites(block, targets, probe), probe)
    return {site.targets[0]: site.stream for site in sites if site.stream is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", WRITERS)
def test_writers(architecture, dtype):
    assert streams_of(tiny_model(architecture).to(dtype)) == WRITERS[architecture]


def test_a_layer_that_gives_nothing_writes_nowhere():
    model = tiny_model("llama")
    nn.init.zeros_(model.model.layers[0].self_attn.o_proj.weight)
    assert streams_of(model) == {"mlp.down_proj": BLOCK_INPUT}  # before and after it, as it is
