"""A model beside its reference on the same windows, one of them in memory at a time."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from q2n.data.windows import TokenWindows
from q2n.evaluation.body import Whole, evaluating
from q2n.evaluation.fidelity import Fidelity
from q2n.evaluation.perplexity import PerplexityResult, perplexity
from q2n.evaluation.scoring import Reference, score_against
from q2n.logging import Reporter

Load = Callable[[], PreTrainedModel]
"""Loads a model when its turn comes."""
Disturb = Callable[[PreTrainedModel], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model and its reference on one text."""

    model: PerplexityResult
    reference: PerplexityResult
    fidelity: Fidelity | None
    """None where only perplexities were asked for."""
    floor: Fidelity | None = None
    """The reference beside itself with noise, if that was asked for."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self | None:
        """Inverse of `to_json`, without the time that was taken; None where nothing was measured.

        Raises:
            TypeError, KeyError, AttributeError: it is something else.
        """
        if not (measured := values.get("perplexity")):
            return None
        fidelity = values.get("fidelity")
        return cls(
            model=PerplexityResult(**measured["quantized"], seconds=0.0),
            reference=PerplexityResult(**measured["original"], seconds=0.0),
            fidelity=None if fidelity is None else Fidelity.from_json(fidelity),
        )

    def to_json(self) -> dict[str, Any]:
        """Entries of the record of a quantized model, without the time that was taken."""
        measured = {"original": asdict(self.reference), "quantized": asdict(self.model)}
        for result in measured.values():
            del result["seconds"]
        fidelity = {} if self.fidelity is None else {"fidelity": asdict(self.fidelity)}
        return {"perplexity": measured, **fidelity}


class Comparer:
    """Compares models with one reference, which runs once, when this is made.

    Args:
        called: what the reference is called.
        batch_size: windows per forward pass.

    Raises:
        InputError: the windows do not fit the reference.
    """

    def __init__(
        self, called: str, load: Load, windows: TokenWindows, *, batch_size: int, reporter: Reporter
    ):
        self.called, self.windows = called, windows
        self._batch_size, self._reporter = batch_size, reporter
        start = time.perf_counter()
        with reporter.bar(f"states of {called}", len(windows)) as bar, torch.inference_mode():
            model = load()
            with evaluating(model):
                self._reference = Reference(Whole(model, windows), batch_size, bar.advance)
        self._seconds = time.perf_counter() - start

    @torch.inference_mode()
    def compare(self, called: str, load: Load, disturb: Disturb = evaluating) -> Comparison:
        """One model, called so on the screen; it runs within `disturb`.

        Raises:
            InputError: the windows do not fit it, or its vocabulary is another.
            NumericalError: logits are not finite, or the loss is too high for a perplexity.
        """
        start = time.perf_counter()
        with self._reporter.bar(f"perplexity and KL of {called}", len(self.windows)) as bar:
            model = load()
            with evaluating(model), disturb(model):
                body = Whole(model, self.windows)
                scores = score_against(self._reference, body, self._batch_size, bar.advance)
        return Comparison(
            model=PerplexityResult.of(scores.loss, self.windows, time.perf_counter() - start),
            reference=PerplexityResult.of(scores.reference_loss, self.windows, self._seconds),
            fidelity=Fidelity.of(scores, self.windows, self.called),
        )


def compare_models(
    original: Load,
    quantized: Load,
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
    if divergence:
        comparer = Comparer(
            "the original", original, windows, batch_size=batch_size, reporter=reporter
        )
        return comparer.compare("the quantized weights", quantized)
    results = []
    for called, load in (("the original", original), ("the quantized weights", quantized)):
        with reporter.bar(f"perplexity of {called}", len(windows)) as bar:
            results.append(perplexity(load(), windows, batch_size=batch_size, progress=bar.advance))
    return Comparison(reference=results[0], model=results[1], fidelity=None)
