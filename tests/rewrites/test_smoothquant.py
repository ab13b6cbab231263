"""SmoothQuant against its definition."""

import pytest
import torch
from oracles import smoothquant as oracle

from q2n.errors import InputError
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.rewrites.rewrite import Reading
from q2n.rewrites.smoothquant import SmoothQuant


def reading(weights, tokens) -> Reading:
    inputs = InputStatistics(tokens.shape[1], RequiredStatistics.SIZES)
    for part in tokens.split(7):
        inputs.update(part)
    return Reading(name="layer", weights=weights, inputs=inputs)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    tokens = torch.randn(40, 12) * torch.logspace(-1, 2, 12)
    weights = [torch.randn(8, 12), 0.1 * torch.randn(5, 12)]
    tokens[:, 3] = 0  # a silent channel, and one that nobody reads
    weights[0][:, 4], weights[1][:, 4] = 0, 0
    return weights, tokens


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0])
def test_the_scale_is_the_defined_one(problem, alpha):
    weights, tokens = problem
    scale = SmoothQuant(smooth_alpha=alpha).scale(reading(weights, tokens))
    expected = oracle.smoothed(
        [w.double().numpy() for w in weights], tokens.double().numpy(), alpha
    )
    torch.testing.assert_close(scale.double(), torch.from_numpy(expected), rtol=1e-5, atol=0)


def test_at_one_half_both_ranges_are_equal(problem):
    weights, tokens = problem
    scale = SmoothQuant().scale(reading(weights, tokens))
    alive = [j for j in range(12) if j not in (3, 4)]
    inputs = (tokens / scale).abs().amax(0)[alive]
    outputs = (torch.cat(weights) * scale).abs().amax(0)[alive]
    torch.testing.assert_close(inputs, outputs, rtol=1e-5, atol=0)


def test_alpha_is_a_share():
    with pytest.raises(InputError, match="smooth_alpha"):
        SmoothQuant(smooth_alpha=1.5)
