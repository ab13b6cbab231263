"""Which tokens stand for all of the text."""

import random

import pytest
import torch

from q2n.pipeline.expert_inputs import OneOfEach


@pytest.mark.parametrize(("count", "stride"), [(8192, 4), (8192, 16), (100, 7), (5, 8), (6, 1)])
def test_as_many_experts_as_a_stride_see_every_token_once(count, stride):
    others = OneOfEach([3, 5, 2], count, stride)
    samples = [others.of(expert) for expert in range(2, 2 + stride)]
    assert torch.equal(torch.cat(samples).sort().values, torch.arange(count))
    assert all(torch.equal(x, x.sort().values) for x in samples)


@pytest.mark.parametrize("stride", [4, 8, 10, 16])
def test_first_tokens_of_windows_come_to_all_experts_alike(stride):
    """128 windows of 2048 in batches of 4: each expert has about 128 / stride of them. Of every
    stride-th token some experts have all 128, others none."""
    draw, seen = random.Random(0), torch.zeros(stride)
    for _ in range(32):
        others = OneOfEach([draw.randrange(8192) for _ in range(stride)], 8192, stride)
        for expert in range(stride):
            seen[expert] += int((others.of(expert) % 2048 == 0).sum())
    assert seen.sum() == 128
    assert seen.min() > 0.3 * 128 / stride and seen.max() < 2.2 * 128 / stride
