"""What llama-perplexity prints, against numpy in float64; its standard errors by simulation."""

import re
from dataclasses import astuple

import numpy as np
import pytest
import torch
from oracles import llama_cpp as oracle

from q2n.errors import InputError
from q2n.evaluation.llama_cpp.comparison import ScoredTokens
from q2n.evaluation.llama_cpp.statistics import (
    DP_PERCENTILES,
    KL_PERCENTILES,
    Estimate,
    Statistics,
)
from q2n.evaluation.llama_cpp.text import as_text


def drawn(count, seed=0):
    """A text's own difficulty in both, and what quantization adds."""
    stream = np.random.default_rng(seed)
    base = stream.gamma(2, 1.5, count)
    values = {
        "nll": base + 0.05 + 0.2 * stream.standard_normal(count) + 1.0,
        "nll_base": base + 1.0,
        "kl": stream.gamma(0.5, 0.02, count),
        "top_base": stream.random(count),
        "mass_base": np.ones(count),
    }
    tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
    return ScoredTokens(same_top=torch.tensor(stream.random(count) < 0.9), **tensors)


def as_float64(scored):
    names = ("nll", "nll_base", "kl", "same_top", "dp")
    return {name: getattr(scored, name).double().numpy() for name in names}


# Squares are rounded to float32, as in llama.cpp: of a mean square 1e-7, of a variance that is a
# small part of it more.
TOLERANCE = 1e-5


@pytest.mark.parametrize("count", [100, 101, 2040])
def test_equal_numpy(count):
    scored = drawn(count)
    found = Statistics.of(scored)
    for name, expected in oracle.statistics(**as_float64(scored)).items():
        value = getattr(found, name)
        value = astuple(value) if isinstance(value, Estimate) else value
        assert value == pytest.approx(expected, rel=TOLERANCE, abs=1e-9), name
    assert found.tokens == count


@pytest.mark.parametrize("count", [100, 101, 2040])
def test_percentiles_equal_numpy(count):
    scored = drawn(count)
    found = Statistics.of(scored)
    for values, percents, got in [
        (scored.kl, KL_PERCENTILES, found.kl_percentiles),
        (scored.dp, DP_PERCENTILES, found.dp_percentiles),
    ]:
        expected = np.percentile(values.double().numpy(), percents)
        # The place among the values is a float32.
        gap = np.diff(np.sort(values.numpy())).max() * count * 2e-7
        np.testing.assert_allclose(list(got.values()), expected, rtol=1e-6, atol=gap)
        assert tuple(got) == percents


@pytest.mark.slow
def test_standard_errors_are_the_spread_of_repeated_draws():
    """Each of 250 texts has 400 tokens; a standard deviation of 250 draws is known to 4.5 %."""
    found = [Statistics.of(drawn(400, seed)) for seed in range(250)]
    names = (
        "ppl",
        "ppl_base",
        "log_ratio",
        "ratio",
        "difference",
        "kl",
        "dp",
        "rms_dp",
        "same_top",
    )
    for name in names:
        values = np.array([astuple(getattr(one, name)) for one in found])
        assert values[:, 1].mean() == pytest.approx(values[:, 0].std(), rel=0.15), name


def test_paired_difference_is_surer_than_either():
    found = Statistics.of(drawn(2000))
    assert found.log_ratio.error < 0.2 * found.ppl.error / found.ppl.value


def test_a_model_against_itself_has_no_error():
    scored = drawn(200)
    same = ScoredTokens(**{**vars(scored), "nll_base": scored.nll, "kl": torch.zeros(200)})
    found = Statistics.of(same)
    assert found.rms_dp == Estimate(value=0.0, error=0.0)
    assert astuple(found.log_ratio) == pytest.approx((0, 0), abs=1e-7)  # of equal sums
    assert found.correlation == pytest.approx(1)


@pytest.mark.parametrize("value", [2.0, 2.1, 2.2, 2.3, 2.4])
def test_a_loss_that_never_varies_has_no_error(value):
    """Of its square, rounded to float32, less may remain than of the square of its mean."""
    flat = ScoredTokens(**{**vars(drawn(200)), "nll": torch.full((200,), value)})
    found = Statistics.of(flat)
    assert found.correlation == pytest.approx(0, abs=1e-3)
    assert found.ppl.error == pytest.approx(0, abs=np.exp(value) * np.sqrt(1e-7 * value**2 / 199))


def test_too_few_tokens_are_refused():
    with pytest.raises(InputError, match="99 scored tokens are too few"):
        Statistics.of(drawn(99))


# Format strings of llama.cpp's kl_divergence(), in its order.
PRINTED = r"""====== Perplexity statistics ======
Mean PPL(Q)                   : %10.6lf ± %10.6lf
Mean PPL(base)                : %10.6lf ± %10.6lf
Cor(ln(PPL(Q)), ln(PPL(base))): %6.2lf%%
Mean ln(PPL(Q)/PPL(base))     : %10.6lf ± %10.6lf
Mean PPL(Q)/PPL(base)         : %10.6lf ± %10.6lf
Mean PPL(Q)-PPL(base)         : %10.6lf ± %10.6lf

====== KL divergence statistics ======
Mean    KLD: %10.6lf ± %10.6lf
Maximum KLD: %10.6f
99.9%%   KLD: %10.6f
99.0%%   KLD: %10.6f
95.0%%   KLD: %10.6f
90.0%%   KLD: %10.6f
Median  KLD: %10.6f
10.0%%   KLD: %10.6f
 5.0%%   KLD: %10.6f
 1.0%%   KLD: %10.6f
 0.1%%   KLD: %10.6f
Minimum KLD: %10.6f

====== Token probability statistics ======
Mean    Δp: %6.3lf ± %5.3lf %%
Maximum Δp: %6.3lf%%
99.9%%   Δp: %6.3lf%%
99.0%%   Δp: %6.3lf%%
95.0%%   Δp: %6.3lf%%
90.0%%   Δp: %6.3lf%%
75.0%%   Δp: %6.3lf%%
Median  Δp: %6.3lf%%
25.0%%   Δp: %6.3lf%%
10.0%%   Δp: %6.3lf%%
 5.0%%   Δp: %6.3lf%%
 1.0%%   Δp: %6.3lf%%
 0.1%%   Δp: %6.3lf%%
Minimum Δp: %6.3lf%%
RMS Δp    : %6.3lf ± %5.3lf %%
Same top p: %6.3lf ± %5.3lf %%
"""


def test_text_has_the_tools_lines():
    s = Statistics.of(drawn(2040))
    nats, percents = [s.ppl, s.ppl_base, s.log_ratio, s.ratio, s.difference, s.kl], []
    values = [x for estimate in nats for x in astuple(estimate)]
    values.insert(4, 100 * s.correlation)
    values += s.kl_percentiles.values()
    percents += astuple(s.dp) + tuple(s.dp_percentiles.values())
    percents += astuple(s.rms_dp) + astuple(s.same_top)
    values += [100 * x for x in percents]
    assert as_text(s) == re.sub("lf", "f", PRINTED) % tuple(values)
