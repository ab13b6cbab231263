"""The cells of a plan: what one process does in one go, and the hashes that name it."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from q2n.config.options import RUN, defaults
from q2n.config.reading import read_settings
from q2n.config.settings import RunSettings
from q2n.config.widths import widths_file_sha256
from q2n.errors import InputError
from q2n.evaluation.tasks.harness import all_names, require_harness
from q2n.evaluation.tasks.names import task_names
from q2n.experiments.plan import Plan, Search, Spectra, Tasks
from q2n.experiments.plan_model import PlanModel
from q2n.experiments.texts import conditions
from q2n.option_types import shown
from q2n.report.experiment import Label


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One quantization, or an original, with all that is measured."""

    plan: str
    title: str
    labels: Mapping[str, Label]
    places: Mapping[str, int]
    compare: Mapping[str, Label]
    """As in `ExperimentRecord`."""
    original: PlanModel
    """What is quantized, and what that is compared with."""
    settings: Mapping[str, Any] | None
    """For `quantize`, without model; None: nothing is quantized."""
    texts: Mapping[str, Mapping[str, Any]]
    tasks: Tasks | None
    spectra: Spectra | None
    search: Search | None

    @property
    def model(self) -> str:
        """Its name."""
        return self.original.name

    @cached_property
    def key(self) -> str:
        """Of everything that the results depend on, but the content of model and texts, which the
        record has hashes of."""
        settings, revision = self.settings, self.original.revision
        own = {} if settings is not None or revision is None else {"revision": revision}
        return _hash(
            {
                "model": self.model,
                **own,
                "settings": None if settings is None else _changed(settings),
                "texts": {name: portable(text) for name, text in self.texts.items()},
                "tasks": self.tasks and asdict(self.tasks),
                "spectra": self.spectra and asdict(self.spectra),
                "search": self.search
                and {**asdict(self.search), "text": portable(self.search.text)},
            }
        )

    @cached_property
    def id(self) -> str:
        """Of the place in the plan and the key."""
        return _hash([self.plan, dict(self.labels), dict(self.compare), self.key])

    @property
    def file(self) -> str:
        """Name of the record's file."""
        return f"{self.key}-{self.id}.json"


def cells_of(
    plan: Plan, *, data_dir: str | None = None, only: Mapping[str, Collection[Label]] | None = None
) -> list[Cell]:
    """All cells, the original of each model and revision before the others.

    Args:
        data_dir: for settings and texts that name none.
        only: axis -> labels of which cells must have one.

    Raises:
        InputError: a cell without model, or with settings that q2n refuses; a text or task that
            nobody has.
    """
    _require_measurable(plan)
    texts = {name: _with_data(text, data_dir) for name, text in plan.texts.items()}
    search = plan.search and replace(plan.search, text=_with_data(plan.search.text, data_dir))
    cells = [
        _cell(plan, place, data_dir, texts=texts, search=search) for place in plan.places(only)
    ]
    if plan.spectra is not None:
        return cells
    originals: dict[tuple[str, str | None], Cell] = {}
    for cell in cells:
        place = cell.model, cell.original.revision
        originals.setdefault(place, _original(cell, plan.model_axes))
    return [*originals.values(), *cells]


def _require_measurable(plan: Plan) -> None:
    """Refuse texts and tasks that nobody has before anything is quantized for them."""
    for name, text in plan.texts.items():
        conditions(name, text)
    if plan.search is not None:
        conditions("of the search", plan.search.text)
    if plan.tasks is not None:
        task_names(plan.tasks.names, _names_of_harness)


def _names_of_harness() -> Mapping[str, set[str]]:
    require_harness()
    return all_names()


def _cell(
    plan: Plan, place: dict[str, Label], data_dir: str | None, *, texts: Any, search: Any
) -> Cell:
    settings = plan.settings_at(place)
    model = settings.pop("model", None)
    where = f"plan {plan.name}, {', '.join(f'{axis} {label}' for axis, label in place.items())}"
    if not isinstance(model, str):
        raise InputError(f"{where}: model is {shown(model)}; it takes the name of a model")
    settings = _with_data(settings, data_dir)
    try:
        run = _require_known(settings, search)
    except InputError as cause:
        raise InputError(f"{where}: {cause}") from cause
    return Cell(
        plan=plan.name,
        title=plan.title,
        labels=place,
        places=plan.numbers(place),
        compare=plan.compared_with(place),
        original=PlanModel(model, run.revision, run.trust_remote_code),
        settings=settings,
        texts=texts,
        tasks=plan.tasks,
        spectra=plan.spectra,
        search=search,
    )


def _require_known(settings: Mapping[str, Any], search: Search | None) -> RunSettings:
    """The settings as they are read; those, and values that a search tries, that q2n refuses are
    refused."""
    if "output" in settings:
        raise InputError("output is no setting of a plan: checkpoints lie in RUNS/work")
    for trial in _single_trials(search):
        read_settings({**settings, **trial})
    return read_settings(settings).run


def _single_trials(search: Search | None) -> Iterable[dict[str, Any]]:
    """Each value that a search tries, alone."""
    over = {} if search is None else search.over
    return ({name: value} for name, values in over.items() for value in values)


def _original(cell: Cell, own: Iterable[str]) -> Cell:
    """The model of a cell as it is; of the cell's labels it has those on its `own` axes."""
    return replace(
        cell,
        labels={axis: label for axis, label in cell.labels.items() if axis in own},
        places={axis: place for axis, place in cell.places.items() if axis in own},
        compare={},
        settings=None,
        search=None,
    )


def _with_data(values: Mapping[str, Any], data_dir: str | None) -> dict[str, Any]:
    return dict(values) if data_dir is None else {"data_dir": data_dir, **values}


def _changed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is not as it is by default, presets written out: options that q2n gets later leave the
    keys of all cells before them as they are."""
    read = read_settings(settings)
    own = {name: getattr(read.run, name) for name in ("corpus", "runtime", "allocation")}
    values = {**read.fingerprint(), **own}
    if own["allocation"] is not None:
        values["allocation"] = widths_file_sha256(own["allocation"])
    usual = defaults((RUN, *read.options))
    return {name: value for name, value in values.items() if value != usual[name]}


def portable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without the place of the data, which is another on every machine."""
    return {name: value for name, value in values.items() if name != "data_dir"}


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
