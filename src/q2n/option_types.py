"""Which values an option takes, said once: by the type of a dataclass field.

    bits: Bits = 4                   a `Literal`: one of its values
    damping: NonNegative = 0.01      a number with a `Range`
    only: tuple[str, ...] = ()       a list of texts

`check_fields` refuses other values when the dataclass is made. The command line refuses the same
ones, from the same declarations in the table of options (config/table.json), before torch and the
class that owns the option are imported.
"""

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from os import PathLike, fspath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from q2n.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Range:
    """Finite numbers from `low` to `high`; an open end is left out, `also` is taken besides."""

    low: int | float = -math.inf
    high: int | float = math.inf
    open_low: bool = False
    open_high: bool = False
    also: int | float | None = None

    def __contains__(self, number: int | float) -> bool:
        if number == self.also:
            return True
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below and abs(number) <= sys.float_info.max

    def __str__(self) -> str:
        parts = []
        if self.low > -math.inf:
            parts.append(f"{'above' if self.open_low else 'at least'} {_number(self.low)}")
        if self.high < math.inf:
            parts.append(f"{'below' if self.open_high else 'at most'} {_number(self.high)}")
        text = " and ".join(parts)
        return text if self.also is None else f"{text}, or {self.also:g}"


def _number(value: int | float) -> str:
    """Whole numbers digit by digit."""
    return str(value) if isinstance(value, int) else f"{value:g}"


MOST = 1_000_000
"""Of whatever is counted: steps, windows, tokens of a window, columns of a group. No model and no
text has more, and a slip of the keyboard is refused instead of filling the memory."""
LARGEST = 1e18
"""Of a factor: its square is still a float32."""

Bits = Literal[2, 3, 4, 8]
"""Widths of weights."""
Width = int | str
"""Of a layer's codes: bits, or the name of a type of blocks."""
WideBits = Literal[2, 3, 4, 5, 6, 8]
"""The same where no table of levels limits them."""
NonNegative = Annotated[float, Range(low=0, high=LARGEST)]
Positive = Annotated[float, Range(low=0, high=LARGEST, open_low=True)]
Share = Annotated[float, Range(low=0, high=1)]
ShareAboveZero = Annotated[float, Range(low=0, open_low=True, high=1)]
ShareInside = Annotated[float, Range(low=0, open_low=True, high=1, open_high=True)]
Count = Annotated[int, Range(low=1, high=MOST)]
CountOrZero = Annotated[int, Range(low=0, high=MOST)]
GroupSize = Annotated[int, Range(low=1, high=MOST, also=-1)]
"""Neighbours that share a scale; -1: all of them."""
WindowLength = Annotated[int, Range(low=2, high=MOST)]
"""Tokens."""
Seed = Annotated[int, Range(low=0, high=2**63 - 1)]
"""What every generator of random numbers takes."""
Patterns = tuple[str, ...]
"""Shell patterns of layer names."""


@dataclass(frozen=True, kw_only=True)
class ValueKind:
    """The values that one option takes, in a form that JSON can hold."""

    type: Literal["bool", "int", "float", "str", "choice", "list"]
    choices: tuple[Any, ...] = ()
    optional: bool = False
    """Whether None is a value too."""
    range: Range | None = None

    @classmethod
    def of(cls, hint: Any) -> Self:
        """From the type of a field."""
        if get_origin(hint) in (Union, UnionType):
            (inner,) = [part for part in get_args(hint) if part is not NoneType]
            return cls(**{**vars(cls.of(inner)), "optional": True})
        if get_origin(hint) is Annotated:
            plain, limits = get_args(hint)
            return cls(type=plain.__name__, range=limits)
        if get_origin(hint) is Literal:
            return cls(type="choice", choices=get_args(hint))
        return cls(type="list" if get_origin(hint) is tuple else hint.__name__)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        limits = values.get("range")
        return cls(
            type=values["type"],
            choices=tuple(values.get("choices", ())),
            optional=values.get("optional", False),
            range=Range(**limits) if limits is not None else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is as usual is left out."""
        usual = Range()
        limits = {} if self.range is None else vars(self.range)
        changed = {key: x for key, x in limits.items() if x != getattr(usual, key)}
        return {
            "type": self.type,
            **({"choices": list(self.choices)} if self.choices else {}),
            **({"optional": True} if self.optional else {}),
            **({"range": changed} if changed else {}),
        }

    def accepts(self, value: Any) -> bool:
        """Whether `value` is one of them; a whole number is a float too, True is no number."""
        if value is None:
            return self.optional
        if self.type == "choice":
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if self.type == "list":
            return isinstance(value, tuple) and all(map(_is_text, value))
        if self.type in ("int", "float"):
            number = isinstance(value, int if self.type == "int" else (int, float))
            return number and value is not True and value is not False and self._in_range(value)
        return isinstance(value, bool) if self.type == "bool" else _is_text(value)

    def parse(self, text: str) -> Any:
        """The value that a word on the command line stands for; the word where it is none."""
        if self.optional and text == "none":
            return None
        if self.type == "bool":
            return {"true": True, "false": False}.get(text.lower(), text)
        readers: dict[str, list[Callable[[str], Any]]] = {
            "int": [int],
            "float": [float],
            "choice": [int, str],
        }
        values = []
        for read in readers.get(self.type, []):
            with suppress(ValueError):
                values.append(read(text))
        accepted = [value for value in values if self.accepts(value)]
        return next(iter([*accepted, *values]), text)

    def __str__(self) -> str:
        """In words, for a message: "it takes ..."."""
        if self.type == "choice":
            return "one of " + ", ".join(map(str, self.choices))
        words = {
            "bool": "true or false",
            "int": "a whole number",
            "float": "a finite number",
            "str": "a text",
            "list": "a list of texts",
        }[self.type]
        return words if self.range is None else f"{words} {self.range}"

    def _in_range(self, number: int | float) -> bool:
        return number in (self.range or Range())


def plain(value: Any) -> Any:
    """What a Python program meant by a value: a number of numpy or torch is that number, a path
    its text, a list a tuple."""
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def refusal(name: str, value: Any, kind: ValueKind) -> str | None:
    """Why an option cannot have this value; None if it can."""
    return None if kind.accepts(value) else f"{name} is {shown(value)}; it takes {kind}"


def require(name: str, value: Any, kind: ValueKind) -> None:
    """Refuse a value that an option cannot have.

    Raises:
        InputError: naming the option, the value and what it takes.
    """
    message = refusal(name, value, kind)
    if message is not None:
        raise InputError(message)


def shown(value: Any) -> str:
    """A value as a message shows it: in one line that is not long."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of many digits"
    if isinstance(value, str):
        value = value[:_SHOWN]
    line = " ".join(repr(value).split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}.."


def _is_text(value: Any) -> bool:
    """Without what no file or name can hold: NUL, bytes that are not UTF-8."""
    if not isinstance(value, str) or "\0" in value:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)


_SHOWN = 100
"""Characters."""


def field_kinds(owner: type) -> dict[str, ValueKind]:
    """The options of a dataclass: its fields, less the method that a wrapper goes around."""
    hints = get_type_hints(owner, include_extras=True)
    return {
        item.name: ValueKind.of(hints[item.name]) for item in fields(owner) if item.name != "inner"
    }


def check_fields(options: Any) -> None:
    """Refuse a dataclass one of whose fields has a value that its type does not take.

    Raises:
        InputError: naming the field, the value and what it takes.
    """
    for name, kind in field_kinds(type(options)).items():
        require(name, getattr(options, name), kind)
