"""Plans as YAML files, and the recipes that come with the package."""

import json
from dataclasses import fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from q2n.config.reading import hint
from q2n.errors import InputError
from q2n.experiments.plan import Plan, Search, Spectra, Tasks
from q2n.experiments.plan_yaml import read_yaml
from q2n.option_types import shown
from q2n.report.experiment import Label

MOST_BYTES = 2**20
ONE_BY_ONE = ("settings", "axes")
"""Keys of which a scale replaces single entries."""


def recipes() -> dict[str, Path]:
    """The plans of the package by name."""
    folder = Path(str(files("q2n.experiments").joinpath("recipes")))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def read_plan(name: str, scale: str | None = None) -> Plan:
    """A plan by the name of its file or recipe.

    Raises:
        InputError: there is none, it cannot be read, or it says what no plan says.
    """
    file = recipes().get(name) if _is_no_file(Path(name)) else Path(name)
    if file is None:
        raise InputError(
            f"there is no plan {name}: it is no file, and the recipes are "
            f"{', '.join(recipes())}" + hint(name, recipes())
        )
    values = _content(file)
    return _at_scale(_parsed(values, file), values, scale, file)


def _is_no_file(place: Path) -> bool:
    """A folder is none: it may be that of a recipe's records, under the recipe's name."""
    return not place.exists() or place.is_dir()


def _at_scale(plan: Plan, values: dict[str, Any], scale: str | None, file: Path) -> Plan:
    if scale is None:
        return plan
    if scale not in plan.scales:
        known = ", ".join(plan.scales) or "none"
        raise InputError(f"{file} has no scale {scale}; it has: {known}")
    changed = {**values, "scales": {}}
    for key, value in plan.scales[scale].items():
        both = key in ONE_BY_ONE and isinstance(value, dict)
        changed[key] = {**values.get(key, {}), **value} if both else value
    return _parsed(changed, file)


def _parsed(values: dict[str, Any], file: Path) -> Plan:
    try:
        return _validator().validate_python({"name": file.stem, **values}).with_model_axis()
    except ValidationError as cause:
        wrong = _wrong_axis(values.get("axes")) or _first_error(cause)
        raise InputError(f"{file}: {wrong}") from cause


@cache
def _validator() -> Any:
    for nested in (Tasks, Spectra, Search):
        with_config(ConfigDict(extra="forbid"))(nested)
    return TypeAdapter(with_config(ConfigDict(extra="forbid"))(Plan))


def _wrong_axis(axes: Any) -> str | None:
    """What is wrong with the first axis that is; None where that is something else. An axis is one
    of two things, and pydantic says of each what it is not."""
    found = (_wrong_choices(*axis) for axis in (axes.items() if isinstance(axes, dict) else ()))
    return next((wrong for wrong in found if wrong is not None), None)


def _wrong_choices(axis: Any, choices: Any) -> str | None:
    if isinstance(choices, dict):
        for label, settings in choices.items():
            if not isinstance(settings, dict):
                return (
                    f"axes.{axis}.{label} is {shown(settings)}; a label stands for settings, such "
                    f"as {label}: {{bits: 3}}"
                )
        return None
    if isinstance(choices, list):
        wrong = [value for value in choices if not isinstance(value, Label)]
        one = "a label is one word or number"
        return f"axes.{axis} has {shown(wrong[0])} among its values; {one}" if wrong else None
    return (
        f"axes.{axis} is {shown(choices)}; an axis is a list of values of the option that it is "
        "named after, or a mapping of labels to settings"
    )


def _first_error(cause: ValidationError) -> str:
    """Where a plan is wrong, and the nearest key where it is one that nobody knows."""
    error = cause.errors()[0]
    where = [str(part) for part in error["loc"]]
    owners = {"tasks": Tasks, "spectra": Spectra, "search": Search}
    if error["type"] == "dataclass_type":
        keys = ", ".join(x.name for x in fields(owners[where[0]]))
        return f"{where[0]} is {shown(error['input'])}; it takes the keys {keys}"
    if error["type"] != "unexpected_keyword_argument":
        return ": ".join(
            filter(None, (".".join(where), error["msg"].removeprefix("Value error, ")))
        )
    owner = owners.get(where[0], Plan) if len(where) > 1 else Plan
    known = [x.name for x in fields(owner)]
    return f"unknown key {'.'.join(where)}{hint(where[-1], known)}; there are: {', '.join(known)}"


def _content(file: Path) -> dict[str, Any]:
    """The YAML mapping in a file."""
    try:
        with file.open("rb") as stream:
            text = stream.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise InputError(f"{file} has more than {MOST_BYTES >> 20} MB; plans are short")
        values = read_yaml(text)
        json.dumps(values)  # refuses dates, and what contains itself
    except (OSError, yaml.YAMLError, TypeError, ValueError, RecursionError) as cause:
        raise InputError(
            f"{file} cannot be read as a plan: {' '.join(str(cause).split())}"
        ) from cause
    if not isinstance(values, dict):
        raise InputError(f"{file} holds no plan: lines of `key: value`")
    return values
