"""AWQ against the published steps; what its search and its clipping promise."""

import numpy as np
import pytest
import torch
from oracles import awq as oracle

from q2n.grids.granularity import granularity_of
from q2n.grids.uniform import UniformGrid
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.rewrites.awq import AWQ
from q2n.rewrites.rewrite import Reading

WIDTH = 64


@pytest.fixture
def tokens() -> torch.Tensor:
    """Correlated, of uneven channels, as a norm gives them."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    channels = torch.logspace(-1, 1.5, WIDTH)[torch.randperm(WIDTH, generator=generator)]
    noise = torch.randn(200, WIDTH, generator=generator)
    return (noise @ mixing + 0.3 * noise) * channels


def weights_of(*rows: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, WIDTH, generator=generator) for count in rows]


def reading(weights, tokens, *, bits=3, group_size=16) -> Reading:
    inputs = InputStatistics(WIDTH, RequiredStatistics.GRAM | RequiredStatistics.SIZES)
    for part in tokens.split(70):
        inputs.update(part)
    grid = UniformGrid(bits=bits, granularity=granularity_of(group_size, ragged=True))
    return Reading(name="layer", weights=weights, inputs=inputs, grid=grid)


def linears(weights, tokens):
    """What the linears give, side by side."""
    return np.concatenate([tokens @ weight.T for weight in weights], 1)


def as_numpy(tensors):
    return [x.double().numpy() for x in tensors]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("rows", [(24,), (16, 8, 8)])
def test_the_scale_is_the_published_one(tokens, rows, bits):
    weights = weights_of(*rows)
    scale = AWQ().scale(reading(weights, tokens, bits=bits))
    args = as_numpy(weights), tokens.double().numpy(), bits, 16, linears
    expected, losses = oracle.searched_scale(*args)
    assert 0 < losses.index(min(losses)) < 19  # neither end, so that a wrong search is seen
    torch.testing.assert_close(scale.double(), torch.from_numpy(expected), rtol=1e-5, atol=0)


def test_a_channel_that_no_token_reaches_keeps_its_weights(tokens):
    """And no part in the normalization of the others."""
    tokens[:, 5] = 0
    (weight,) = weights_of(24)
    given = reading([weight], tokens, group_size=-1)
    scale = AWQ().scale(given)
    others = torch.arange(WIDTH) != 5
    live = scale[others]
    assert scale[5] == 1 and live.max() / live.min() > 2
    torch.testing.assert_close(live.max() * live.min(), torch.tensor(1.0))
    rounded = given.rounded(weight * scale) / scale
    assert (rounded - weight)[:, 5].norm() < 0.5 * weight[:, 5].norm()


def test_where_no_token_reaches_anything_no_scale_moves():
    given = reading(weights_of(24), torch.zeros(10, WIDTH))
    assert torch.equal(AWQ().scale(given), torch.ones(WIDTH))


@pytest.mark.parametrize("group_size", [16, -1])
def test_clipping_is_the_published_one(tokens, group_size):
    weight = weights_of(24)[0] ** 3  # long tails, so that the narrowest bounds are chosen too
    given = reading([weight], tokens, group_size=group_size)
    scale = AWQ().scale(given)
    found = AWQ(rewrite_clip=True).clipped(given, weight * scale, scale)
    group = WIDTH if group_size == -1 else group_size
    # in float32: with both ends clamped a zero point lies half way between two codes
    expected = oracle.clipped((weight * scale).numpy(), (tokens / scale).numpy(), 3, group)
    changed = found != weight * scale
    assert 0.01 < changed.float().mean() < 0.5
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-6, atol=0)


def test_without_the_option_nothing_is_clipped(tokens):
    (weight,) = weights_of(24)
    given = reading([weight], tokens)
    assert AWQ().clipped(given, weight, torch.ones(WIDTH)) is weight


def test_the_search_never_loses_to_plain_rounding(tokens):
    weights = weights_of(16, 8)
    given = reading(weights, tokens)
    scale = AWQ().scale(given)

    def error(s):
        return sum(((given.rounded(w * s) / s - w) @ tokens.T).square().sum() for w in weights)

    assert error(scale) < 0.7 * error(torch.ones(WIDTH))


def test_a_silent_channel_keeps_the_search_finite(tokens):
    tokens[:, 5] = 0
    scale = AWQ().scale(reading(weights_of(16), tokens))
    assert torch.isfinite(scale).all() and (scale > 0).all()


def test_a_ragged_group_is_clipped_alone(tokens):
    (weight,) = weights_of(8)
    one = torch.ones(WIDTH)
    found = AWQ(rewrite_clip=True).clipped(reading([weight], tokens, group_size=24), weight, one)
    last = AWQ(rewrite_clip=True).clipped(
        reading([weight], tokens * (torch.arange(WIDTH) >= 48), group_size=24), weight, one
    )
    assert torch.equal(found[:, 48:], last[:, 48:]) and found.shape == weight.shape
