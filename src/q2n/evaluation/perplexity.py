r"""Perplexity: exp of the mean cross entropy with which a model predicts a text.

Each window is run by itself. Of L tokens L - 1 are predicted (the first has nothing
before it), so for windows side by side

    loss_w = -1/(L-1) sum_i log p(token_i | tokens of the window before i)
    perplexity = exp(mean over windows of loss_w).

For windows cut with a stride s < L every token is predicted once: the first window
counts all its predictions, each later one only its last s tokens, which have at least
L - s tokens of context. The mean is then over tokens. A protocol may count fewer
(`data/protocols.py`).

**Standard error.** From the spread of the windows (spread.py), and since d exp(x) = exp(x) dx, that
of the mean loss times the perplexity. It tells how far another text of the same kind would move the
figure; two models on the same windows differ far more surely than that (fidelity.py).
"""

import math
import time

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.data.windows import TokenWindows
from q2n.errors import NumericalError
from q2n.evaluation.body import Body
from q2n.evaluation.results import PerplexityResult
from q2n.evaluation.scoring import Progress, score
from q2n.evaluation.spread import error_of_mean, window_means

HIGHEST_LOSS = 700.0
"""exp of more overflows a float64; a uniform guess over any vocabulary is below 13."""


@torch.inference_mode()
def perplexity(
    body: Body, batch_size: int = 4, progress: Progress | None = None
) -> PerplexityResult:
    """Measure a model on the windows of its body.

    Args:
        batch_size: windows per forward pass.
        progress: called with the number of windows that were done.

    Raises:
        InputError: batch_size < 1.
        NumericalError: a loss is NaN or infinite, or too high for a perplexity.
    """
    start = time.perf_counter()
    losses = score(body, batch_size, progress)
    return perplexity_of(losses, body.windows, time.perf_counter() - start)


def perplexity_of(
    losses: Float[Tensor, " tokens"], windows: TokenWindows, seconds: float
) -> PerplexityResult:
    """From the loss of every token that counts, in nats.

    Raises:
        NumericalError: they are too high for a perplexity.
    """
    loss = float(losses.mean())
    if loss > HIGHEST_LOSS:
        raise NumericalError(f"mean loss {loss:.0f} on {windows.label!r}: the model is broken")
    error = error_of_mean(window_means(losses, windows.scored))
    return PerplexityResult(
        perplexity=math.exp(loss),
        loss=loss,
        standard_error=None if error is None else math.exp(loss) * error,
        windows=len(windows),
        tokens=len(losses),
        length=windows.length,
        stride=windows.stride,
        protocol=windows.protocol,
        label=windows.label,
        sha256=windows.sha256,
        seconds=seconds,
    )
