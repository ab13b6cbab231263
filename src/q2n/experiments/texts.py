"""Texts on which a sweep measures: each with the original's predictions, which run once.

The states of the original on a text lie in a temporary file (`evaluation/states_file.py`) and serve
every cell of the same model that this process does.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from q2n.config.reading import hint
from q2n.data.texts import require_positions
from q2n.data.windows import TokenWindows
from q2n.errors import InputError
from q2n.evaluation.compare import Comparer, measure
from q2n.evaluation.evaluate import Conditions, open_text, opening
from q2n.evaluation.results import Fidelity, PerplexityResult
from q2n.experiments.plan_model import PlanModel
from q2n.logging import Reporter
from q2n.models.config_file import read_config
from q2n.report.experiment import TextResult

RUN = 32
"""Tokens in a row that two texts have in common only if they are one."""


class Original:
    """One model as it is, on the texts of a plan."""

    def __init__(
        self, model: PlanModel, texts: Mapping[str, Mapping[str, Any]], reporter: Reporter
    ):
        """
        Args:
            texts: name -> fields of `Conditions`.

        Raises:
            InputError: no such model or text, or a condition that nobody knows.
        """
        self.model, self._reporter = model, reporter
        self._on = {name: _trusting(conditions(name, x), model) for name, x in texts.items()}
        self._windows: dict[str, TokenWindows] = {}
        self._comparers: dict[str, Comparer] = {}

    def measured(self) -> list[TextResult]:
        """The original itself."""
        return [self._alone(name) for name in self._on]

    def compared(self, folder: Path) -> list[TextResult]:
        """A quantized model beside it.

        Raises:
            NumericalError: its logits are not finite.
        """
        return [self._beside(name, folder) for name in self._on]

    def divergence(self, folder: Path) -> float:
        """Of a quantized model on the only text."""
        (result,) = self.compared(folder)
        assert result.divergence is not None
        return result.divergence

    def require_texts(self) -> None:
        """Open all texts, before anything is done that is to be measured on them.

        Raises:
            InputError: a text is not there, or is too short, or its windows are longer than the
                positions of the model.
        """
        for name in self._on:
            self.windows(name)

    def windows(self, name: str) -> TokenWindows:
        """A text in the original's tokens. Raises as `require_texts`."""
        if name not in self._windows:
            try:
                self._windows[name] = self._opened(self._on[name])
            except InputError as cause:
                raise InputError(f"text {name}: {cause}") from cause
        return self._windows[name]

    def _opened(self, on: Conditions) -> TokenWindows:
        folder = self.model.folder()
        config = read_config(folder, on.trust_remote_code).get_text_config()
        windows = open_text(folder, None, on, self._reporter)
        require_positions(windows.length, getattr(config, "max_position_embeddings", None))
        return windows

    def require_apart(self, others: "Original") -> None:
        """Refuse a text that shares windows with another.

        Raises:
            InputError: which two do.
        """
        for name in self._on:
            for other in others._on:
                if _share_windows(self.windows(name), others.windows(other)):
                    raise InputError(
                        f"the held-out text of the search ({self.windows(name).label}) has windows "
                        f"of {other}, on which the result is measured; choose another split"
                    )

    def _alone(self, name: str) -> TextResult:
        on = self._on[name]
        body = opening(self.model.name, self.model.folder(), on)
        how: dict[str, Any] = {"batch_size": on.batch_size, "reporter": self._reporter}
        return _result(name, measure(self.model.name, body, self.windows(name), **how), None)

    def _beside(self, name: str, folder: Path) -> TextResult:
        on = self._on[name]
        if name not in self._comparers:
            self._comparers[name] = Comparer(
                self.model.name,
                opening(self.model.name, self.model.folder(), on),
                self.windows(name),
                batch_size=on.batch_size,
                reporter=self._reporter,
            )
        found = self._comparers[name].compare(folder.name, opening(str(folder), folder, on))
        return _result(name, found.model, found.fidelity)


def conditions(name: str, text: Mapping[str, Any]) -> Conditions:
    """What a plan says of a text.

    Raises:
        InputError: an option that nobody knows, or a value that it does not take.
    """
    known = [field.name for field in fields(Conditions)]
    for key in text:
        if key not in known:
            raise InputError(
                f"text {name}: unknown option {key}{hint(str(key), known)}; there are: "
                f"{', '.join(known)}"
            )
    if "ppl" not in text:
        raise InputError(f"text {name} does not say ppl: the name of a corpus, a file or a folder")
    try:
        return Conditions.of(**text)
    except InputError as cause:
        raise InputError(f"text {name}: {cause}") from cause


def _trusting(on: Conditions, model: PlanModel) -> Conditions:
    """Code of the checkpoint runs if the text or the settings let it."""
    return replace(on, trust_remote_code=on.trust_remote_code or model.trust_remote_code)


def _share_windows(one: TokenWindows, other: TokenWindows) -> bool:
    """Whether the tokens at the middle of a window of either stand anywhere in a window of the
    other: texts that are cut otherwise overlap too, and of a long window the middle may lie beyond
    the end of the other text."""
    count = min(RUN, one.tokens.shape[1] // 2, other.tokens.shape[1] // 2)
    return _holds_middle(one, other, count) or _holds_middle(other, one, count)


def _holds_middle(text: TokenWindows, windows: TokenWindows, count: int) -> bool:
    """Whether so many tokens from the middle of one of the windows stand in the text."""
    runs = set(map(tuple, text.of_text.flatten().unfold(0, count, 1).tolist()))
    middle = windows.tokens.shape[1] // 2
    return any(tuple(run) in runs for run in windows.tokens[:, middle : middle + count].tolist())


def _result(name: str, found: PerplexityResult, fidelity: Fidelity | None) -> TextResult:
    f = fidelity
    beside: dict[str, Any] = (
        {}
        if f is None
        else {
            "divergence": f.divergence,
            "divergence_error": f.divergence_error,
            "same_top": f.same_top,
            "same_top_error": f.same_top_error,
            "by_window": f.by_window,
        }
    )
    return TextResult(
        text=name,
        protocol=found.protocol,
        length=found.length,
        windows=found.windows,
        sha256=found.sha256,
        perplexity=found.perplexity,
        perplexity_error=found.standard_error,
        **beside,
    )
