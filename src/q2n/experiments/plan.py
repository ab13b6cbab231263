"""A plan: which models are quantized how, and what each result is measured on.

    name: table1
    settings: {method: gptq, windows: 16, length: 512}
    axes:
      model: [smollm2-135m, gemma3-270m]         # values of the option with this name
      bits: {"3": {bits: 3}, "2": {bits: 2, group_size: 64}}      # or label: settings
      step: {alone: {}, Q2N: {nullspace: paper}}
      seed: [0, 1, 2]
    compare: step
    texts: {WikiText-2: {ppl: wikitext2, length: 512, windows: 16}}

Every combination of one label an axis is a cell: its settings are those of the plan, then those of
its labels in the order of the axes. Cells that agree in all but `compare` are compared with the one
that has its first label. What each key takes stands beside its field below.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

from q2n.errors import InputError
from q2n.report.experiment import Label

OF_THE_SWEEP = ("model", "revision", "output")
"""Options of `q2n quantize` that name the model and where it goes: no search is over them."""


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Tasks of lm-evaluation-harness."""

    names: list[str]
    limit: int | None = None
    """Questions of each at most."""
    shots: int | None = None
    """Examples in a prompt; none given: the task's own number."""
    batch_size: int = 1
    dtype: str | None = None
    """In which the model runs; none given: the checkpoint's."""


@dataclass(frozen=True, kw_only=True)
class Spectra:
    """Whose inputs' spectra are taken."""

    layers: list[str]
    """Patterns of names of layers."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Options that are chosen for each cell by the divergence on held-out text."""

    over: dict[str, list[Any]]
    """Option -> values to try, the first of each to begin with."""
    how: Literal["coordinate", "grid"] = "coordinate"
    """One option after the other, in rounds until nothing changes; or every combination."""
    text: dict[str, Any]
    """The held-out text, as one of `texts`. None of its windows may be among theirs."""

    def __post_init__(self) -> None:
        for name in self.over:
            if not self.over[name]:
                raise InputError(f"search over {name} has no value to try")
            if name in OF_THE_SWEEP:
                raise InputError(f"a search cannot be over {name}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The keys of a plan."""

    name: str
    title: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of every cell: any option of `q2n quantize`."""
    axes: dict[str, list[Label] | dict[Label, dict[str, Any]]] = field(default_factory=dict)
    skip: list[dict[str, Label | list[Label]]] = field(default_factory=list)
    """Cells that have all of these labels (or one of a list) are left out."""
    compare: str | None = None
    """The axis along which cells are compared."""
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the report calls a text -> options of `q2n eval` (ppl, length, windows, ...)."""
    tasks: Tasks | None = None
    spectra: Spectra | None = None
    """Instead of quantizing."""
    search: Search | None = None
    scales: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> keys of a plan that `--scale NAME` puts in the place of those here: settings and axes
    one by one, the others as a whole."""

    def __post_init__(self) -> None:
        if self.compare is not None and self.compare not in self.axes:
            raise InputError(
                f"plan {self.name}: compare is {self.compare!r}, which is none of its axes: "
                f"{', '.join(self.axes)}"
            )
        for axis, label in ((a, x) for skipped in self.skip for a, x in skipped.items()):
            for each in label if isinstance(label, list) else [label]:
                self._require_label(axis, each)
        if not (self.texts or self.tasks or self.spectra):
            raise InputError(f"plan {self.name} measures nothing: give texts, tasks or spectra")

    def labels(self, axis: str) -> dict[Label, dict[str, Any]]:
        """The settings behind each label of an axis."""
        choices = self.axes[axis]
        return choices if isinstance(choices, dict) else {x: {axis: x} for x in choices}

    @property
    def model_axes(self) -> list[str]:
        """Those whose labels say which model it is, or which revision of it: by these an original
        is called."""
        return [axis for axis in self.axes if self._sets(axis, "model", "revision")]

    def with_model_axis(self) -> "Plan":
        """The same plan; a model that stands among its settings alone becomes an axis."""
        model = self.settings.get("model")
        named = any(self._sets(axis, "model") for axis in self.axes)
        if named or not isinstance(model, str):
            return self
        return replace(self, axes={"model": [model], **self.axes})

    def _sets(self, axis: str, *names: str) -> bool:
        """Whether a label of an axis sets one of these."""
        return any(name in x for x in self.labels(axis).values() for name in names)

    def label(self, axis: str, text: str) -> Label:
        """The label that is written so.

        Raises:
            InputError: there is no such axis or label.
        """
        self._require_axis(axis)
        found = next((label for label in self.labels(axis) if str(label) == text), text)
        self._require_label(axis, found)
        return found

    def places(
        self, only: Mapping[str, Collection[Label]] | None = None
    ) -> Iterable[dict[str, Label]]:
        """The labels of every cell, one of those in `only` where it names an axis.

        Raises:
            InputError: `only` names what is no axis or label.
        """
        only = only or {}
        for axis, labels in only.items():
            for label in labels:
                self._require_label(axis, label)
        for combination in product(*map(self.labels, self.axes)):
            place = dict(zip(self.axes, combination, strict=True))
            wanted = all(place[axis] in labels for axis, labels in only.items())
            if wanted and not self._is_skipped(place):
                yield place

    def settings_at(self, place: Mapping[str, Label]) -> dict[str, Any]:
        """The settings of a cell."""
        settings = dict(self.settings)
        for axis, label in place.items():
            settings |= self.labels(axis)[label]
        return settings

    def numbers(self, place: Mapping[str, Label]) -> dict[str, int]:
        """The place of each label on its axis, from 0."""
        return {axis: list(self.labels(axis)).index(label) for axis, label in place.items()}

    def compared_with(self, place: Mapping[str, Label]) -> dict[str, Label]:
        """The label that makes a place that with which it is compared; none for that itself."""
        if self.compare is None:
            return {}
        first = next(iter(self.labels(self.compare)))
        return {} if place[self.compare] == first else {self.compare: first}

    def _is_skipped(self, place: Mapping[str, Label]) -> bool:
        return any(
            all(place[axis] in (x if isinstance(x, list) else [x]) for axis, x in skipped.items())
            for skipped in self.skip
        )

    def _require_axis(self, axis: str) -> None:
        if axis not in self.axes:
            known = ", ".join(self.axes)
            raise InputError(f"plan {self.name} has no axis {axis!r}; it has {known}")

    def _require_label(self, axis: str, label: Label) -> None:
        self._require_axis(axis)
        if label not in self.labels(axis):
            known = ", ".join(map(str, self.labels(axis)))
            raise InputError(f"plan {self.name}: axis {axis} has no {label!r}; it has {known}")
