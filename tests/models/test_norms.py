"""What norms add to their weight before they multiply with it."""

import pytest
import torch
from tiny import tiny_model
from torch import nn

from q2n.models.norms import offset_of


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, hidden, gate):
        return hidden * self.weight * gate


@pytest.mark.parametrize(
    ("architecture", "offset"),
    [("llama", 0.0), ("qwen3", 0.0), ("opt", 0.0), ("gemma2", 1.0)],
)
def test_it_is_found_in_every_norm_of_a_model(architecture, offset):
    model = tiny_model(architecture, layers=1)
    norms = [
        part
        for part in model.modules()
        if (weight := part._parameters.get("weight")) is not None and weight.ndim == 1
    ]
    assert len(norms) > 2
    before = [norm.weight.detach().clone() for norm in norms]
    assert [offset_of(norm) for norm in norms] == [offset] * len(norms)
    assert all(torch.equal(norm.weight, x) for norm, x in zip(norms, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_and_with_a_bias(dtype):
    norm = nn.LayerNorm(16, dtype=dtype)
    nn.init.normal_(norm.bias, 3.0)
    assert offset_of(norm) == 0.0


def test_what_takes_a_gate_counts_as_plain():
    assert offset_of(Gated()) == 0.0
