r"""What `llama-perplexity --kl-divergence` prints, from the values per token.

With x = nll, y = nll_base over n tokens, var(m(x)) = (E[x^2] - E[x]^2) / (n - 1) and
cov(m(x), m(y)) = (E[xy] - E[x] E[y]) / (n - 1) are of the means. The standard errors follow to
first order:

    PPL = exp(m(x))              PPL s(x)
    ln(PPL / PPL_base)           s = sqrt(s(x)^2 + s(y)^2 - 2 cov)
    PPL / PPL_base               ratio s
    PPL - PPL_base               sqrt(u^2 + u_base^2 - 2 PPL PPL_base cov), u = PPL s
    RMS dp = sqrt(m(dp^2))       s(dp^2) / (2 RMS)
    same top = share p           sqrt(p (1 - p) / (n - 1))

The difference of two models on the same text has a far smaller error than either: cov takes out
the text's own difficulty. All of them take tokens for independent draws. Those of one chunk are
not, so they are too small.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from q2n.errors import InputError
from q2n.evaluation.llama_cpp.comparison import ScoredTokens

FEWEST = 100
"""Tokens of which llama.cpp makes statistics."""

KL_PERCENTILES = (100.0, 99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1, 0.0)
DP_PERCENTILES = (100.0, 99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1, 0.0)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Every field is JSON but for the percentiles' keys. Nats; probabilities from 0 to 1."""

    tokens: int
    ppl: Estimate
    """Of the tested model."""
    ppl_base: Estimate
    """From the 16-bit log probabilities: a target below their floor counts as the floor."""
    correlation: float
    """Of the two perplexities' logarithms; 0 where one of them does not vary."""
    log_ratio: Estimate
    ratio: Estimate
    difference: Estimate
    kl: Estimate
    kl_percentiles: dict[float, float]
    """By percent; 100 is the maximum."""
    dp: Estimate
    dp_percentiles: dict[float, float]
    rms_dp: Estimate
    same_top: Estimate

    @classmethod
    def of(cls, scored: ScoredTokens) -> Self:
        """
        Raises:
            InputError: fewer than 100 tokens.
        """
        require_enough(len(scored))
        nll, nll_base = _mean(scored.nll), _mean(scored.nll_base)
        cov = _covariance(scored.nll, scored.nll_base)
        ppl, ppl_base = _exp(nll), _exp(nll_base)
        log_ratio = Estimate(
            value=nll.value - nll_base.value, error=_error_of_difference(nll, nll_base, cov)
        )
        return cls(
            tokens=len(scored),
            ppl=ppl,
            ppl_base=ppl_base,
            correlation=_ratio(cov, nll.error * nll_base.error),
            log_ratio=log_ratio,
            ratio=_exp(log_ratio),
            difference=Estimate(
                value=ppl.value - ppl_base.value,
                error=_error_of_difference(ppl, ppl_base, ppl.value * ppl_base.value * cov),
            ),
            kl=_mean(scored.kl),
            kl_percentiles=_percentiles(scored.kl, KL_PERCENTILES),
            dp=_mean(scored.dp),
            dp_percentiles=_percentiles(scored.dp, DP_PERCENTILES),
            rms_dp=_root(_mean(scored.dp.square())),
            same_top=_share(int(scored.same_top.sum()), len(scored)),
        )


def require_enough(tokens: int) -> None:
    """Refuse statistics of too few tokens, before any work.

    Raises:
        InputError: with the number.
    """
    if tokens < FEWEST:
        raise InputError(
            f"{tokens} scored tokens are too few for statistics: take more chunks or longer ones, "
            f"to score {FEWEST} (of n_ctx tokens of a chunk n_ctx/2 - 1 are scored)"
        )


def _mean(values: Float32[Tensor, " tokens"]) -> Estimate:
    """Squares in float32, sums in float64, as llama.cpp has them."""
    mean = float(values.mean(dtype=torch.float64))
    variance = float(values.square().mean(dtype=torch.float64)) - mean**2
    return Estimate(value=mean, error=_root_or_zero(variance / (len(values) - 1)))


def _covariance(a: Float32[Tensor, " tokens"], b: Float32[Tensor, " tokens"]) -> float:
    """Of the means."""
    means = [float(x.mean(dtype=torch.float64)) for x in (a, b, a * b)]
    return (means[2] - means[0] * means[1]) / (len(a) - 1)


def _exp(x: Estimate) -> Estimate:
    return Estimate(value=math.exp(x.value), error=math.exp(x.value) * x.error)


def _root(x: Estimate) -> Estimate:
    root = math.sqrt(x.value)
    return Estimate(value=root, error=_ratio(0.5 * x.error, root))


def _share(count: int, of: int) -> Estimate:
    share = count / of
    return Estimate(value=share, error=math.sqrt(share * (1 - share) / (of - 1)))


def _error_of_difference(a: Estimate, b: Estimate, cov: float) -> float:
    return _root_or_zero(a.error**2 + b.error**2 - 2 * cov)


def _root_or_zero(variance: float) -> float:
    """Of a variance that rounding may have made negative."""
    return math.sqrt(max(0.0, variance))


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0


def _percentiles(
    values: Float32[Tensor, " tokens"], percents: tuple[float, ...]
) -> dict[float, float]:
    """Interpolated between the two neighbours of place f (n - 1); in float32 throughout, which
    llama.cpp's last digits show."""
    ordered, last = np.sort(values.numpy()), np.float32(len(values) - 1)
    found = {}
    for percent in percents:
        place = np.float32(percent / 100) * last
        low = int(place)
        part = np.float32(place - np.float32(low))
        high = min(low + 1, len(ordered) - 1)
        found[percent] = float((np.float32(1) - part) * ordered[low] + part * ordered[high])
    return found
