r"""Fidelity: how much of a reference model's predictions another model keeps.

On the same tokens, over the full vocabulary: the divergence KL(p_ref | p) in nats a token, the
share of tokens with the same most probable continuation, the change of the probability of the token
that comes, and the paired difference of the losses,

    log (perplexity / reference perplexity) = mean_i (loss_i - reference loss_i).

All of these are differences between two models on one text, so what makes the text hard or easy
cancels: their errors (spread.py, over windows) are far below that of a perplexity.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from q2n.data.windows import TokenWindows
from q2n.errors import InputError
from q2n.evaluation.per_token import PerToken
from q2n.evaluation.results import Bucket, Fidelity
from q2n.evaluation.spread import error_of_mean, window_means

EDGES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Of the buckets, by the reference's highest probability; those of exllamav3's qbench."""


def fidelity_of(scores: PerToken, windows: TokenWindows, reference: str) -> Fidelity:
    """Statistics of the tokens that count."""

    def mean_and_error(values: Float[Tensor, " tokens"]) -> tuple[float, float | None]:
        return float(values.mean()), error_of_mean(window_means(values, windows.scored))

    divergence, divergence_error = mean_and_error(scores.divergence)
    same_top, same_top_error = mean_and_error(scores.same_top.double())
    ratio, ratio_error = mean_and_error(scores.loss - scores.reference_loss)
    change = (-scores.loss).exp() - (-scores.reference_loss).exp()
    square, square_error = mean_and_error(change.square())
    median, p90, p99, p999 = _quantiles(scores.divergence, (0.5, 0.9, 0.99, 0.999))
    return Fidelity(
        reference=reference,
        divergence=divergence,
        divergence_error=divergence_error,
        median=median,
        percentile_90=p90,
        percentile_99=p99,
        percentile_999=p999,
        maximum=float(scores.divergence.max()),
        same_top=same_top,
        same_top_error=same_top_error,
        probability_change=math.sqrt(square),
        # d sqrt(x) = dx / (2 sqrt(x))
        probability_change_error=square_error and square_error / 2 / math.sqrt(square),
        log_ratio=ratio,
        log_ratio_error=ratio_error,
        buckets=_buckets(scores),
        by_window=tuple(window_means(scores.divergence, windows.scored).tolist()),
        protocol=windows.protocol,
        sha256=windows.sha256,
    )


def paired_difference(a: Fidelity, b: Fidelity) -> tuple[float, float | None]:
    """Divergence of `a` less that of `b`, mean over windows, and its standard error.

    Raises:
        InputError: they were not measured on the same windows.
    """
    if (a.sha256, a.protocol) != (b.sha256, b.protocol):
        raise InputError(
            "the two were measured on different windows, or by different protocols, and cannot be "
            "compared"
        )
    differences = torch.tensor(a.by_window).double() - torch.tensor(b.by_window).double()
    return float(differences.mean()), error_of_mean(differences)


def _quantiles(values: Float[Tensor, " tokens"], at: Sequence[float]) -> list[float]:
    """By linear interpolation. (`torch.quantile` takes 16 million numbers at most.)"""
    return np.quantile(values.numpy(), at).tolist()


def _buckets(scores: PerToken) -> tuple[Bucket, ...]:
    place = torch.bucketize(scores.reference_top, torch.tensor(EDGES[1:-1]).double(), right=True)
    return tuple(
        _bucket(scores, place == number, low, high)
        for number, (low, high) in enumerate(zip(EDGES, EDGES[1:], strict=False))
    )


def _bucket(scores: PerToken, inside: Tensor, low: float, high: float) -> Bucket:
    values = scores.divergence[inside]
    some = len(values) > 0
    return Bucket(
        low=low,
        high=high,
        share=float(inside.double().mean()),
        divergence=float(values.mean()) if some else None,
        median=_quantiles(values, (0.5,))[0] if some else None,
        same_top=float(scores.same_top[inside].double().mean()) if some else None,
    )
