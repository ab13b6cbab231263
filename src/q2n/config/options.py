"""The table of options: who has which, what it takes, what it is for.

The table is written by `python -m q2n.config.catalogue` from the dataclasses that own the options
and read here without them, in a millisecond and without torch.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Self

from q2n.option_types import ValueKind

RUN, CHANGES = "run", "model changes"
SWITCHES = {
    "correction": "correct",
    "nullspace": "nullspace",
    "output scales": "output_scales",
    "incoherence": "incoherence",
}
"""Wrapper -> the setting that turns it on."""
REWRITE_OWNERS = {"awq": "awq rewrite", "smoothquant": "smoothquant rewrite"}
"""`--rewrite NAME` -> who owns its options."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of one owner."""

    name: str
    kind: ValueKind
    default: Any
    help: str

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        default = values["default"]
        return cls(
            name=values["name"],
            kind=ValueKind.from_json(values["kind"]),
            default=tuple(default) if isinstance(default, list) else default,
            help=values["help"],
        )

    def to_json(self) -> dict[str, Any]:
        """Inverse of `from_json`."""
        return {
            "name": self.name,
            "kind": self.kind.to_json(),
            "default": self.default,
            "help": self.help,
        }


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """What `q2n methods` prints of a method or preset."""

    name: str
    summary: str
    strategy: str
    """`Method.strategy`."""
    bits: str
    """The widths that it offers."""
    storage: str
    """What it stores with default options."""
    formats: tuple[str, ...]
    """Checkpoint formats that hold it."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """All options by owner, and all methods."""

    owners: Mapping[str, Mapping[str, Option]]
    methods: Mapping[str, MethodEntry]
    """Presets included."""
    storages: Mapping[str, str]
    """What a storage holds, in words."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        owners = {
            owner: {item["name"]: Option.from_json(item) for item in options}
            for owner, options in values["owners"].items()
        }
        methods = {
            name: MethodEntry(name=name, **{**entry, "formats": tuple(entry["formats"])})
            for name, entry in values["methods"].items()
        }
        return cls(owners=owners, methods=methods, storages=values["storages"])

    def owners_of(self, name: str) -> list[str]:
        """Who has an option of this name."""
        return [owner for owner, options in self.owners.items() if name in options]


@cache
def table() -> Table:
    """The table as it was written."""
    return Table.from_json(json.loads(files("q2n.config").joinpath("table.json").read_text()))


def defaults(owners: Iterable[str]) -> dict[str, Any]:
    """The defaults of their options, as JSON values; of a name that several have the last."""
    return {
        name: json.loads(json.dumps(option.default))
        for owner in owners
        for name, option in table().owners[owner].items()
    }


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag of the command line: an option of one or several owners."""

    name: str
    kinds: tuple[ValueKind, ...]
    """What it takes, by owner; mostly the same."""
    help: str

    def parse(self, text: str) -> Any:
        """The value that a word stands for: by the first owner that accepts it."""
        values = [kind.parse(text) for kind in self.kinds]
        accepted = [x for x, kind in zip(values, self.kinds, strict=True) if kind.accepts(x)]
        return (accepted or values)[0]


def flags(owners: list[str]) -> Iterator[Flag]:
    """The flags of some owners, each name once; the help says who has it, with which default."""
    options = table().owners
    for name in dict.fromkeys(name for owner in owners for name in options[owner]):
        have = [owner for owner in owners if name in options[owner]]
        first = options[have[0]][name]
        alike = [x for x in have if options[x][name].default == first.default]
        others = [f"{x}: {options[x][name].default}" for x in have if x not in alike]
        usual = "" if first.default in (None, "", ()) else f" (default: {first.default})"
        who = "" if have == owners else f" [{', '.join([*alike, *others])}]"
        kinds = tuple(dict.fromkeys(options[x][name].kind for x in have))
        texts = dict.fromkeys(options[x][name].help for x in have)
        text = first.help if len(kinds) == 1 else " / ".join(texts)
        yield Flag(name=name, kinds=kinds, help=text + _choices(kinds, text) + usual + who)


def _choices(kinds: Sequence[ValueKind], text: str) -> str:
    """What an option takes, where its text does not say all of it."""
    every = dict.fromkeys(str(choice) for kind in kinds for choice in kind.choices)
    unsaid = any(not re.search(rf"(?<!\w){re.escape(x)}(?!\w)", text) for x in every)
    return f" One of {', '.join(every)}." if unsaid else ""
