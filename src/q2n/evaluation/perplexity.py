r"""Perplexity: exp of the mean cross entropy with which a model predicts a text.

Each window is run by itself. Of L tokens L - 1 are predicted (the first has nothing
before it), so for windows side by side

    loss_w = -1/(L-1) sum_i log p(token_i | tokens of the window before i)
    perplexity = exp(mean over windows of loss_w).

For windows cut with a stride s < L every token is predicted once: the first window
counts all its predictions, each later one only its last s tokens, which have at least
L - s tokens of context. The mean is then over tokens.

**Standard error.** The losses of the windows are taken as independent draws:
se(mean loss) = std(loss_w) / sqrt(windows), and since d exp(x) = exp(x) dx, the
perplexity's is perplexity times that. It tells how far another text of the same kind
would move the figure; two models on the same windows differ far more surely than that.

**Memory.** The output head is applied to a few hundred tokens at a time, so float32
logits of a whole window never exist at once: at a vocabulary of 49152 a window of 2048
tokens would take 400 MB. That is right only for a model whose logits are its head
applied to its last hidden states, with no scaling or capping after it. One short
forward pass decides: if the two ways differ in any bit, the full forward is used.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from q2n.data.windows import TokenWindows
from q2n.errors import InputError, NumericalError

CHUNK = 2**24
"""Logits in memory at once: 64 MB in float32."""

PROBE = 16
"""Tokens of the forward pass that decides how logits are made."""

HIGHEST_LOSS = 700.0
"""exp of more overflows a float64; a uniform guess over any vocabulary is below 13."""


@dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """One measurement; every field is a JSON value."""

    perplexity: float
    loss: float
    """Mean cross entropy in nats a token."""
    standard_error: float | None
    """Of the perplexity, from the spread of the windows; None for a single window."""
    windows: int
    tokens: int
    """Predicted tokens."""
    length: int
    """Tokens in a window: the longest context and one."""
    stride: int | None
    label: str
    """The text."""
    sha256: str
    """Of the token windows."""
    seconds: float


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel,
    windows: TokenWindows,
    *,
    batch_size: int = 4,
    stride: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> PerplexityResult:
    """Measure a causal language model on token windows, on the device it lies on.

    Args:
        windows: side by side, or cut with a stride; their sha256 goes into the result.
        batch_size: windows per forward pass.
        stride: the step with which the windows were cut; None: side by side.
        progress: called after each batch with the number of windows it held.

    Raises:
        InputError: the windows do not fit the model (context, vocabulary) or the stride, or
            batch_size < 1.
        NumericalError: a loss is NaN or infinite, or too high for a perplexity.
    """
    _require_fit(model, windows, batch_size)
    counts = _counted(windows, stride)
    start = time.perf_counter()
    training = model.training
    model.eval()
    try:
        sums = _window_sums(model, windows, counts, batch_size, progress)
    finally:
        model.train(training)
    loss = float(sums.sum() / counts.sum())
    if loss > HIGHEST_LOSS:
        raise NumericalError(f"mean loss {loss:.0f} on {windows.label!r}: the model is broken")
    means = sums / counts
    error = float(means.std()) / math.sqrt(len(windows)) if len(windows) > 1 else None
    return PerplexityResult(
        perplexity=math.exp(loss),
        loss=loss,
        standard_error=None if error is None else math.exp(loss) * error,
        windows=len(windows),
        tokens=int(counts.sum()),
        length=windows.length,
        stride=stride,
        label=windows.label,
        sha256=windows.sha256,
        seconds=time.perf_counter() - start,
    )


def _require_fit(model: PreTrainedModel, windows: TokenWindows, batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} must be at least 1")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and windows.length > context:
        raise InputError(
            f"windows of {windows.length} tokens exceed the model's context of {context}; "
            "use shorter windows"
        )
    windows.within(len(_embeddings(model)))


def _embeddings(model: PreTrainedModel) -> Float[Tensor, "words width"]:
    return cast(Tensor, model.get_input_embeddings().weight)


def _counted(windows: TokenWindows, stride: int | None) -> Int64[Tensor, " windows"]:
    """How many predictions count in each window: its last ones."""
    length, tokens = windows.length, windows.tokens
    counts = torch.full((len(windows),), length - 1)
    if stride is None:
        return counts
    if not torch.equal(tokens[1:, : length - stride], tokens[:-1, stride:]):
        raise InputError(f"the windows of {windows.label!r} were not cut with stride {stride}")
    counts[1:] = min(stride, length - 1)
    return counts


def _window_sums(
    model: PreTrainedModel,
    windows: TokenWindows,
    counts: Int64[Tensor, " windows"],
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> Float[Tensor, " windows"]:
    """The summed loss of the predictions that count in each window, in float64."""
    embeddings = _embeddings(model)
    chunk = max(1, CHUNK // embeddings.shape[0])
    run, head = _states_and_head(model, windows.tokens[:1, :PROBE].to(embeddings.device))
    sums = torch.zeros(len(windows), dtype=torch.float64)
    for first in range(0, len(windows), batch_size):
        tokens = windows.tokens[first : first + batch_size].to(embeddings.device)
        states = run(tokens)
        for row, count in enumerate(counts[first : first + batch_size].tolist()):
            predicting = states[row, -count - 1 : -1].split(chunk)
            targets = tokens[row, -count:].split(chunk)
            for state, target in zip(predicting, targets, strict=True):
                sums[first + row] += _summed_loss(head(state), target)
        if not bool(sums.isfinite().all()):
            bad = int((~sums.isfinite()).nonzero()[0])
            raise NumericalError(
                f"the loss of window {bad} of {windows.label!r} is not finite: the model's weights "
                "or activations are not; try --dtype float32, or look for NaN in the checkpoint"
            )
        if progress is not None:
            progress(len(tokens))
    return sums


def _summed_loss(logits: Float[Tensor, "tokens words"], targets: Int64[Tensor, " tokens"]) -> float:
    loss = functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="none")
    return float(loss.sum(dtype=torch.float64))


def _states_and_head(
    model: PreTrainedModel, probe: Int64[Tensor, "1 tokens"]
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """(tokens -> states, some states -> their logits).

    The states are the last hidden states where the head on them gives the model's logits
    to the bit; otherwise they are the logits themselves.
    """

    def hidden(tokens: Tensor) -> Tensor:
        return model.base_model(tokens, use_cache=False).last_hidden_state

    def logits(tokens: Tensor) -> Tensor:
        return model(tokens, use_cache=False).logits

    head = model.get_output_embeddings()
    separable = (
        head is not None
        and model.base_model is not model
        and torch.equal(head(hidden(probe)), logits(probe))
    )
    return (hidden, head) if separable else (logits, lambda rows: rows)
