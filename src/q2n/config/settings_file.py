"""A file of settings: YAML, of which lines of `name: value` are enough.

    method: gptq
    bits: 3
    refit: off
    ignore: ["*down_proj"]

A word means what the option takes it for, as on the command line, whatever version of YAML its
writer had in mind: `refit: off` is a word, `correct: off` is false, `damping: 1e-3` is a number and
`revision: 1e3` a text. So the file is read as a stream of events, from which no reader of YAML has
made values yet, and what settings have no use for (values within values, aliases, tags, a second
document) is refused where it begins, before anything is expanded.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from q2n.config.options import Flag, flags, table
from q2n.config.presets import ALIASES
from q2n.errors import InputError, reason_of
from q2n.option_types import shown

MOST_BYTES = 2**20
_NOTHING = ("", "~", "null")
_BOOLEANS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


def read_settings_file(file: Path) -> dict[str, Any]:
    """The settings in a file, each by the name that stands there; None for one without a value.

    Raises:
        InputError: it cannot be read, or is more than settings; the message has the line.
    """
    import yaml  # 20 ms, which calls without a file need not wait for

    settings: dict[str, Any] = {}
    try:
        events = _Events(yaml.parse(_content(file), Loader=yaml.SafeLoader))
        for line, name, value in _entries(events):
            if name in settings:
                raise _Refused(line, f"{shown(name)} is set a second time")
            text = isinstance(value, _Word)
            settings[name] = meant(name, value.text, quoted=value.quoted) if text else value
    except _Refused as refused:
        raise InputError(f"--config {file}, line {refused.line + 1}: {refused}") from refused
    except OSError as cause:
        raise InputError(f"--config {file} cannot be read: {reason_of(cause)}") from cause
    except yaml.YAMLError as cause:
        reason = " ".join(str(cause).split())
        raise InputError(f"--config {file} cannot be read as YAML: {reason}") from cause
    return settings


class _Refused(Exception):
    """What settings have no use for, and the line, from 0, on which it stands."""

    def __init__(self, line: int, what: str):
        super().__init__(what)
        self.line = line


class _Word(NamedTuple):
    """One value as it stands in the file."""

    text: str
    quoted: bool


class _Events:
    """The events of a file, one after the other."""

    def __init__(self, events: Iterator[Any]):
        self._events = events
        self.line = 0

    def take(self) -> tuple[str, Any]:
        """Kind and content of the next event: a scalar, or the beginning or end of something.

        Raises:
            _Refused: it is an alias, or has an anchor or a tag.
        """
        event = next(self._events)
        self.line = event.start_mark.line
        if getattr(event, "anchor", None) is not None:
            raise _Refused(self.line, "anchors and aliases (& and *) are not taken")
        if getattr(event, "tag", None) not in (None, "!"):
            raise _Refused(self.line, f"tags ({shown(event.tag)}) are not taken")
        return type(event).__name__.removesuffix("Event"), event


def _entries(events: _Events) -> Iterator[tuple[int, str, Any]]:
    """Line, name and value (a `_Word` or a list of texts) of every setting."""
    events.take()  # the stream begins
    if events.take()[0] == "StreamEnd":
        return
    kind, event = events.take()
    if kind != "MappingStart" and not (kind == "Scalar" and event.value == ""):
        raise _Refused(events.line, "it holds no settings: lines of `name: value`")
    if kind == "MappingStart":
        yield from _pairs(events)
    events.take()  # the document ends
    if events.take()[0] != "StreamEnd":
        raise _Refused(events.line, "a second document begins; settings are one")


def _pairs(events: _Events) -> Iterator[tuple[int, str, Any]]:
    while True:
        kind, event = events.take()
        if kind == "MappingEnd":
            return
        line = events.line
        if kind != "Scalar":
            raise _Refused(line, "the name of a setting is one word")
        yield line, event.value, _value(events)


def _value(events: _Events) -> Any:
    kind, event = events.take()
    if kind == "Scalar":
        return _Word(event.value, quoted=event.style is not None)
    items: list[str] = []
    while kind == "SequenceStart":
        item, event = events.take()
        if item == "SequenceEnd":
            return items
        if item != "Scalar":
            kind = item
            break
        items.append(event.value)
    raise _Refused(events.line, "a value is a word, a number or a list of words: nothing within it")


def meant(name: str, text: str, *, quoted: bool) -> Any:
    """What the text of a setting's value stands for; the text itself where no option has the
    name."""
    flag = _known_flags().get(ALIASES.get(name, name))
    if not quoted and text.lower() in _NOTHING:
        return None
    if flag is None:
        return text
    parsed = flag.parse(text)
    if quoted or any(kind.accepts(parsed) for kind in flag.kinds):
        return parsed
    return _BOOLEANS.get(text.lower(), parsed)


@cache
def _known_flags() -> dict[str, Flag]:
    return {flag.name: flag for flag in flags(list(table().owners))}


def _content(file: Path) -> bytes:
    """What the file holds, if it is one and no larger than settings are.

    Raises:
        OSError: it cannot be read.
        InputError: it is a folder, a pipe or a device, or too large.
    """
    if not file.is_file() and file.exists():
        raise InputError(f"--config {file} is no file of settings but a folder, pipe or device")
    with file.open("rb") as stream:
        content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError(f"--config {file} has more than {MOST_BYTES >> 20} MB; settings are short")
    return content
