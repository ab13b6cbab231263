"""Writes the table of options and docs/options.md from the dataclasses that own the options.

    python -m q2n.config.catalogue [ROOT]

A new method, option or default appears on the command line after this; a test compares.
"""

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from q2n.config.options import (
    CHANGES,
    REWRITE_OWNERS,
    RUN,
    SWITCHES,
    MethodEntry,
    Option,
    Table,
)
from q2n.config.owners import BY_SWITCH, WRAPPERS, storage
from q2n.config.presets import (
    ALIASES,
    METHOD_PRESETS,
    PRESET_STRATEGIES,
    PRESET_SUMMARIES,
    QUALITIES,
)
from q2n.config.runtimes import RUNTIMES
from q2n.config.settings import RunSettings
from q2n.formats import FORMATS
from q2n.formats.choice import formats_for
from q2n.layers import REPRESENTATIONS
from q2n.layers.quantized import StorageSpec
from q2n.methods import METHODS
from q2n.option_types import ValueKind, field_kinds
from q2n.rewrites import REWRITES
from q2n.transforms.model_changes import ModelChanges
from q2n.wrappers.incoherence import Incoherence

TABLE = Path(__file__).with_name("table.json")
RUNTIME = "Rotations and rounding while the model runs."


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    TABLE.write_text(as_json(build_table()))
    (root / "docs" / "options.md").write_text(as_markdown(build_table()))


def build_table() -> Table:
    """The table as the classes stand now."""
    owners: dict[str, dict[str, Option]] = {RUN: _run_options()}
    owners |= {name: options_of(method) for name, method in METHODS.items()}
    for name, wrapper in WRAPPERS.items():
        owners[name] = options_of(wrapper)
        owners[name].pop(BY_SWITCH.get(name, ("",))[0], None)
    owners |= {owner: options_of(REWRITES[name]) for name, owner in REWRITE_OWNERS.items()}
    owners[CHANGES] = options_of(ModelChanges)
    specs = {name: method().storage for name, method in METHODS.items()}
    methods = {name: _entry(name, summary(METHODS[name]), specs[name]) for name in METHODS}
    for name, preset in METHOD_PRESETS.items():
        spec = _preset_storage(preset)
        methods[name] = _entry(name, PRESET_SUMMARIES[name], spec, METHODS[preset["method"]])
        specs[name] = spec
    storages = {_label(spec): _contents(spec) for spec in specs.values()}
    return Table(owners=owners, methods=methods, storages=storages)


def options_of(owner: type) -> dict[str, Option]:
    """The options of a dataclass: its fields with their types, defaults and docstrings."""
    texts = dict(_field_texts(owner))
    kinds = field_kinds(owner)
    defaults = {
        item.name: None if item.default is MISSING else item.default for item in fields(owner)
    }
    return {
        name: Option(name=name, kind=kind, default=defaults[name], help=texts.get(name, ""))
        for name, kind in kinds.items()
    }


def summary(documented: type) -> str:
    """The first line of a class's docstring."""
    return (documented.__doc__ or "").strip().splitlines()[0]


def as_json(table: Table) -> str:
    """The file that `options.table` reads."""
    values = {
        "owners": {
            owner: [option.to_json() for option in options.values()]
            for owner, options in table.owners.items()
        },
        "methods": {
            name: {key: x for key, x in vars(entry).items() if key != "name"}
            for name, entry in table.methods.items()
        },
        "storages": table.storages,
    }
    return json.dumps(values, indent=1) + "\n"


def as_markdown(table: Table) -> str:
    """docs/options.md."""
    lines = [
        "# Options of `q2n quantize`",
        "",
        "Written by `make options` from the classes that own the options. On the command line",
        "`group_size` is `--group-size`; in YAML and Python the names are as here. Other names:",
        ", ".join(f"`{alias}` is `{name}`" for alias, name in ALIASES.items()) + ".",
        "",
    ]
    for owner, options in table.owners.items():
        lines += [f"## {_title(owner)}", "", "| option | takes | default | |", "|---|---|---|---|"]
        for option in options.values():
            default = "" if option.default in (None, "", ()) else f"`{option.default}`"
            text = option.help.replace("|", "\\|")
            lines.append(f"| `{option.name}` | {option.kind} | {default} | {text} |")
        lines.append("")
    return "\n".join([*lines, *_qualities()])


def _qualities() -> list[str]:
    """What a quality stands for, by method."""
    lines = ["## What `quality` sets", "", "| method | `good` | `best`, besides |", "|---|---|---|"]
    for method, good in QUALITIES["good"].items():
        best = {x: y for x, y in QUALITIES["best"][method].items() if x not in good}
        cells = (", ".join(f"`{x}: {y}`" for x, y in own.items()) for own in (good, best))
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return [*lines, ""]


def _title(owner: str) -> str:
    if owner in METHODS:
        return f"Method `{owner}`"
    if owner in SWITCHES:
        return f"{owner.capitalize()} (with `--{SWITCHES[owner].replace('_', '-')}`)"
    flags = {owner: f" (with `--rewrite {name}`)" for name, owner in REWRITE_OWNERS.items()}
    return owner.capitalize() + flags.get(owner, "")


def _run_options() -> dict[str, Option]:
    """Those of the run; methods, formats and runtimes are the ones there are."""
    options = options_of(RunSettings)
    names = {
        "method": [*METHODS, *METHOD_PRESETS],
        "format": list(FORMATS),
        "runtime": list(RUNTIMES),
    }
    for name, choices in names.items():
        optional = options[name].kind.optional
        kind = ValueKind(type="choice", choices=tuple(choices), optional=optional)
        options[name] = replace(options[name], kind=kind)
    return options


def _preset_storage(preset: Mapping[str, Any]) -> StorageSpec:
    own = field_kinds(METHODS[preset["method"]])
    method = METHODS[preset["method"]](**{key: x for key, x in preset.items() if key in own})
    if preset.get("incoherence", "off") != "off":
        method = Incoherence(inner=method)
    changes = field_kinds(ModelChanges)
    return storage(method, ModelChanges(**{key: x for key, x in preset.items() if key in changes}))


def _entry(name: str, text: str, spec: StorageSpec, method: Any = None) -> MethodEntry:
    built = method or METHODS[name]
    return MethodEntry(
        name=name,
        summary=text,
        strategy=PRESET_STRATEGIES.get(name, built.strategy),
        bits=built.bits_offered,
        storage=_label(spec),
        formats=tuple(formats_for(spec)),
    )


def _label(spec: StorageSpec) -> str:
    return f"{spec.kind}, runtime parts" if spec.runtime else spec.kind


def _contents(spec: StorageSpec) -> str:
    text = summary(REPRESENTATIONS[spec.kind])
    return f"{text} {RUNTIME}" if spec.runtime else text


def _field_texts(owner: type) -> Iterator[tuple[str, str]]:
    """The docstring after each field, bases first."""
    for base in reversed(owner.__mro__[:-1]):
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):
            continue
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        for item, text in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(item, ast.AnnAssign) and isinstance(text, ast.Expr):
                if isinstance(text.value, ast.Constant) and isinstance(item.target, ast.Name):
                    yield item.target.id, " ".join(str(text.value.value).split())


if __name__ == "__main__":
    main()
