"""A model beside its reference on the same windows, one of them in memory at a time."""

import time
from typing import Any

import torch

from q2n.data.windows import TokenWindows
from q2n.evaluation.fidelity import fidelity_of
from q2n.evaluation.opening import OpenBody
from q2n.evaluation.perplexity import perplexity, perplexity_of
from q2n.evaluation.results import Comparison, PerplexityResult
from q2n.evaluation.scoring import Reference, score_against
from q2n.logging import Reporter


class Comparer:
    """Compares models with one reference, which runs once, when this is made.

    Args:
        called: what the reference is called.
        batch_size: windows per forward pass.

    Raises:
        InputError: the windows do not fit the reference.
    """

    def __init__(
        self,
        called: str,
        reference: OpenBody,
        windows: TokenWindows,
        *,
        batch_size: int,
        reporter: Reporter,
    ):
        self.called, self.windows = called, windows
        self._batch_size, self._reporter = batch_size, reporter
        start, title = time.perf_counter(), f"states of {called}"
        with (
            torch.inference_mode(),
            reporter.bar(title, len(windows)) as bar,
            reference(windows, bar) as body,
        ):
            self._reference = Reference(body, batch_size, bar.advance)
        self._seconds = time.perf_counter() - start

    @torch.inference_mode()
    def compare(self, called: str, model: OpenBody) -> Comparison:
        """One model, called so on the screen.

        Raises:
            InputError: the windows do not fit it, or its vocabulary is another.
            NumericalError: logits are not finite, or the loss is too high for a perplexity.
        """
        start, title = time.perf_counter(), f"perplexity and KL of {called}"
        with (
            self._reporter.bar(title, len(self.windows)) as bar,
            model(self.windows, bar) as body,
        ):
            scores = score_against(self._reference, body, self._batch_size, bar.advance)
        seconds = time.perf_counter() - start
        return Comparison(
            model=perplexity_of(scores.loss, self.windows, seconds),
            reference=perplexity_of(scores.reference_loss, self.windows, self._seconds),
            fidelity=fidelity_of(scores, self.windows, self.called),
        )


def compare_models(
    original: OpenBody,
    quantized: OpenBody,
    windows: TokenWindows,
    *,
    divergence: bool,
    batch_size: int,
    reporter: Reporter,
) -> Comparison:
    """A model before and after. Without `divergence` their perplexities alone.

    Raises:
        InputError, NumericalError: as `Comparer`.
    """
    how: dict[str, Any] = {"batch_size": batch_size, "reporter": reporter}
    if divergence:
        return Comparer("the original", original, windows, **how).compare(
            "the quantized weights", quantized
        )
    return Comparison(
        reference=measure("the original", original, windows, **how),
        model=measure("the quantized weights", quantized, windows, **how),
        fidelity=None,
    )


def measure(
    called: str, model: OpenBody, windows: TokenWindows, *, batch_size: int, reporter: Reporter
) -> PerplexityResult:
    """The perplexity of one model, called so on the screen. Raises as `Comparer.compare`."""
    with (
        torch.inference_mode(),
        reporter.bar(f"perplexity of {called}", len(windows)) as bar,
        model(windows, bar) as body,
    ):
        return perplexity(body, batch_size, bar.advance)
