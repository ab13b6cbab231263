"""Divergence and what goes with it, from whole logits in float64 by the definitions."""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def per_token(logits: np.ndarray, reference: np.ndarray, targets: np.ndarray) -> dict:
    """[tokens, words] twice and [tokens] -> one number a token of each kind."""
    log_q, log_p = log_softmax(logits.astype(float)), log_softmax(reference.astype(float))
    rows = np.arange(len(targets))
    return {
        "loss": -log_q[rows, targets],
        "reference_loss": -log_p[rows, targets],
        "divergence": (np.exp(log_p) * (log_p - log_q)).sum(-1),
        "same_top": log_q.argmax(-1) == log_p.argmax(-1),
        "reference_top": np.exp(log_p.max(-1)),
    }


def statistics(scores: dict, windows: list[slice]) -> dict:
    """Of all tokens; `windows` says which belong together."""

    def error(values):
        means = np.array([values[window].mean() for window in windows])
        return means.std(ddof=1) / np.sqrt(len(means))

    kl, change = scores["divergence"], np.exp(-scores["loss"]) - np.exp(-scores["reference_loss"])
    ratio, rms = scores["loss"] - scores["reference_loss"], np.sqrt((change**2).mean())
    return {
        "divergence": kl.mean(),
        "divergence_error": error(kl),
        "median": np.quantile(kl, 0.5),
        "percentile_90": np.quantile(kl, 0.9),
        "percentile_99": np.quantile(kl, 0.99),
        "percentile_999": np.quantile(kl, 0.999),
        "maximum": kl.max(),
        "same_top": scores["same_top"].mean(),
        "same_top_error": error(scores["same_top"].astype(float)),
        "probability_change": rms,
        "probability_change_error": error(change**2) / (2 * rms),
        "log_ratio": ratio.mean(),
        "log_ratio_error": error(ratio),
    }
