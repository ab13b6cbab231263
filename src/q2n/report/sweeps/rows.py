"""Rows of a table: the cells of a plan that differ in their seed alone.

A row reads its results from its records as means over seeds (paired.py). The order of rows is that
of the plan.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

from q2n.report.experiment import ExperimentRecord, Label, TaskScore, TextResult
from q2n.report.paired import Estimate, Windows, difference, over_seeds, over_windows, unpaired

SEED = "seed"
Labels = Mapping[str, Label]
Key = frozenset[tuple[str, Label]]


@dataclass(frozen=True)
class Row:
    """Cells that differ in their seed alone."""

    labels: Labels
    """Without the seed."""
    cells: Mapping[Label | None, ExperimentRecord]
    """By seed."""

    @cached_property
    def done(self) -> Mapping[Label | None, ExperimentRecord]:
        """Those that were not refused."""
        return {seed: cell for seed, cell in self.cells.items() if cell.refused is None}

    @property
    def first(self) -> ExperimentRecord:
        """A cell to show where one stands for all, done if there is one."""
        return next(iter((self.done or self.cells).values()))

    @property
    def is_original(self) -> bool:
        """Whether it is the model that is not quantized."""
        return self.first.is_original

    @property
    def refusals(self) -> list[str]:
        """Why cells were not done, each reason once."""
        return list(dict.fromkeys(x.refused for x in self.cells.values() if x.refused is not None))

    @property
    def key(self) -> Key:
        """What names it among the rows of its plan but its model's original, which may have the
        same labels."""
        return frozenset(self.labels.items())

    @property
    def reference_key(self) -> Key | None:
        """Of the row with which it is compared."""
        compare = {k: v for k, v in self.first.compare.items() if k != SEED}
        key = frozenset({**self.labels, **compare}.items())
        return key if compare and key != self.key else None

    def mean(self, what: str) -> float | None:
        """Of a number that a record has or has not, over the cells that have it."""
        values = self._known(what)
        return fmean(values) if values else None

    def most(self, what: str) -> float | None:
        """The largest one."""
        values = self._known(what)
        return float(max(values)) if values else None

    def _known(self, what: str) -> list[int | float]:
        return [x for cell in self.done.values() if (x := getattr(cell, what)) is not None]

    def seconds(self, what: str) -> float | None:
        """Mean time of one thing."""
        values = [c.seconds[what] for c in self.done.values() if what in c.seconds]
        return fmean(values) if values else None

    @property
    def texts(self) -> list[str]:
        """Names of the texts that it was measured on."""
        return list(self._on_texts)

    def on(self, text: str) -> "OnText":
        """Its results on one text."""
        return self._on_texts.get(text, OnText({}))

    @cached_property
    def _on_texts(self) -> Mapping[str, "OnText"]:
        """Kept, for it keeps its means: tables, leads and figures ask for the same ones."""
        found: dict[str, dict[Label | None, TextResult]] = {}
        for seed, cell in self.done.items():
            for result in cell.texts:
                found.setdefault(result.text, {})[seed] = result
        return {text: OnText(results) for text, results in found.items()}

    @property
    def tasks(self) -> list[str]:
        """Names of its tasks."""
        return list(dict.fromkeys(x.task for cell in self.done.values() for x in cell.tasks))

    def task(self, name: str, metric: str) -> Estimate | None:
        """acc or acc_norm of one task."""
        found = [x for cell in self.done.values() for x in cell.tasks if x.task == name]
        return _scores(found, metric)

    def mean_of_tasks(self, metric: str) -> Estimate | None:
        """Plain mean over the tasks (evaluation/tasks/results.py), of the seeds that have all."""
        every = set(self.tasks)
        whole = [c.tasks for c in self.done.values() if {x.task for x in c.tasks} == every]
        means = [mean for tasks in whole if (mean := _mean(tasks, metric)) is not None]
        return over_seeds([x.value for x in means], [x.error for x in means]) if means else None


@dataclass(frozen=True)
class OnText:
    """A row's results on one text, by seed."""

    results: Mapping[Label | None, TextResult]

    @cached_property
    def windows(self) -> Windows:
        """Divergence of each window; empty where that was not measured, or not of every seed on
        the same windows."""
        results = self.results.values()
        known = len(self._measured_on()) == 1 and all(x.by_window for x in results)
        return {seed: x.by_window for seed, x in self.results.items()} if known else {}

    @property
    def perplexity(self) -> Estimate | None:
        """Over seeds."""
        return self._plain("perplexity")

    @property
    def same_top(self) -> Estimate | None:
        """Share of tokens with the original's most probable continuation."""
        return self._plain("same_top")

    @cached_property
    def divergence(self) -> Estimate | None:
        """From the original, in nats a token."""
        plain = self._plain("divergence")
        if plain is None or not self.windows:
            return plain
        return replace(over_windows(self.windows), value=plain.value, spread=plain.spread)

    def less(self, other: "OnText") -> Estimate | None:
        """Divergence less that of another row, paired, or from their means where the windows one by
        one are not known; None where their windows differ."""
        ours, theirs = self.divergence, other.divergence
        if ours is None or theirs is None or self._measured_on() != other._measured_on():
            return None
        if self.windows and other.windows:
            return difference(self.windows, other.windows)
        return unpaired(ours, theirs)

    def _measured_on(self) -> set[tuple[str, str, int, int]]:
        results = self.results.values()
        return {(x.sha256, x.protocol, x.windows, len(x.by_window)) for x in results}

    def _plain(self, what: str) -> Estimate | None:
        known = [x for x in self.results.values() if getattr(x, what) is not None]
        if not known:
            return None
        errors = [getattr(x, f"{what}_error") for x in known]
        return over_seeds([getattr(x, what) for x in known], errors)


def _scores(found: Sequence[TaskScore], metric: str) -> Estimate | None:
    known = [x for x in found if getattr(x, metric) is not None]
    if not known:
        return None
    errors = [getattr(x, f"{metric}_error") for x in known]
    return over_seeds([getattr(x, metric) for x in known], errors)


def _mean(tasks: Sequence[TaskScore], metric: str) -> Estimate | None:
    """Over tasks: their questions are others, so their errors are independent."""
    scores = [_scores([task], metric) for task in tasks]
    known = [x for x in scores if x is not None]
    if not known or len(known) < len(scores):
        return None
    squares = [None if x.error is None else x.error**2 for x in known]
    error = None if None in squares else sum(x or 0.0 for x in squares) ** 0.5 / len(known)
    return Estimate(fmean(x.value for x in known), error)


def rows_of(records: Iterable[ExperimentRecord]) -> list[Row]:
    """The rows of one plan, in its order. Of records of one place the last counts, and with it
    those of other seeds that were done as it was."""
    groups: dict[tuple[Key, bool], list[ExperimentRecord]] = {}
    for record in records:
        place = frozenset(_without_seed(record.labels).items()), record.settings is None
        groups.setdefault(place, []).append(record)
    rows = [_row(group) for group in groups.values()]
    ordered = axes(rows)
    return sorted(rows, key=lambda row: [row.first.places.get(axis, -1) for axis in ordered])


def axes(rows: Sequence[Row]) -> list[str]:
    """Names of the labels, in the plan's order."""
    longest = sorted(rows, key=lambda row: -len(row.labels))
    return list(dict.fromkeys(axis for row in longest for axis in row.labels))


def _row(records: Sequence[ExperimentRecord]) -> Row:
    last = records[-1]
    cells = {record.labels.get(SEED): record for record in records if _are_alike(record, last)}
    return Row(_without_seed(last.labels), cells)


def _are_alike(one: ExperimentRecord, other: ExperimentRecord) -> bool:
    """Whether two cells may differ in their seed alone: in settings, windows and questions they do
    not, as those of a plan before and after a change, nor in the content of the model's folder."""
    models = {x.original_sha256 for x in (one, other)} - {None}
    settings, others = ({**(x.settings or {}), SEED: None} for x in (one, other))
    measured, measured_too = _measured(one), _measured(other)
    common = measured.keys() & measured_too.keys()
    same = all(measured[x] == measured_too[x] for x in common)
    return settings == others and same and len(models) < 2


def _measured(record: ExperimentRecord) -> dict[tuple[str, str], object]:
    """Each text and task, and on what of it."""
    texts = {("text", x.text): x.sha256 for x in record.texts}
    tasks = {("task", x.task): (x.questions, x.limit, x.shots) for x in record.tasks}
    return {**texts, **tasks}


def _without_seed(labels: Labels) -> dict[str, Label]:
    return {k: v for k, v in labels.items() if k != SEED}
