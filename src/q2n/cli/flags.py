"""What the commands share: a parser that fails in one line, flags from the table of options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from q2n.config.options import CHANGES, REWRITE_OWNERS, RUN, SWITCHES, Flag, flags, table
from q2n.config.presets import ALIASES, WHEN_ALONE
from q2n.config.settings_file import read_settings_file
from q2n.errors import InputError

if TYPE_CHECKING:
    from q2n.logging import Reporter


class Parser(argparse.ArgumentParser):
    """An argument parser that raises, and that shows help as it was written."""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs |= {"allow_abbrev": False, "formatter_class": PlainHelp}
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """
        Raises:
            InputError: always, with the nearest flags that exist.
        """
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if unknown and message.startswith("unrecognized"):
            parser = self._chosen()
            written = unknown[0].partition("=")[0].replace("_", "-")
            close = get_close_matches(written, parser._option_string_actions, 1)
            message += f"; did you mean {close[0]}?" if close else f"; see {parser.prog} --help"
        raise InputError(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; what was given says in `error` which command was meant."""
        self._given = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def _chosen(self) -> argparse.ArgumentParser:
        """The parser of the command that was given; this one where none was."""
        commands = [a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        named = (choices[x] for choices in commands for x in self._given if x in choices)
        return next(named, self)


class PlainHelp(argparse.HelpFormatter):
    """Help line by line: our texts name the defaults of other owners too."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30)

    def _split_lines(self, text: str, width: int) -> list[str]:
        wrap = super()._split_lines
        return [part for line in text.splitlines() for part in wrap(line, width)]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n".join(fill(line, width, indent) for line in text.splitlines())


def add_options(parser: argparse.ArgumentParser, title: str, options: Iterable[Flag]) -> None:
    """One flag per option; an option that is not set has no entry, so that its owner's default
    holds. None is its default, whatever a file says."""
    group = parser.add_argument_group(title)
    others = {name: alias for alias, name in ALIASES.items()}
    for option in options:
        names = [f"--{option.name.replace('_', '-')}"]
        if option.name in others:
            names.append(f"--{others[option.name]}")
        (first, *_) = option.kinds
        kind: dict[str, Any] = {"type": option.parse, "metavar": option.name.upper()}
        if first.type == "bool":
            kind |= {"nargs": "?", "const": True, "metavar": "BOOL"}
        elif option.name in WHEN_ALONE:
            kind |= {"nargs": "?", "const": True}
        elif first.type == "list":
            kind |= {"type": str, "nargs": "+"}
        help_text = option.help.replace("%", "%%")
        group.add_argument(
            *names, dest=option.name, default=argparse.SUPPRESS, help=help_text, **kind
        )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting of a run."""
    methods = [owner for owner in table().owners if owner in table().methods]
    add_options(parser, "run", flags([RUN]))
    add_options(parser, "method (each has its own defaults)", flags(methods))
    add_options(parser, "around the method", flags(list(SWITCHES)))
    add_options(parser, "before the method", flags(list(REWRITE_OWNERS.values())))
    add_options(parser, CHANGES, flags([CHANGES]))


def settings_of(parsed: argparse.Namespace, others: Iterable[str]) -> dict[str, Any]:
    """What was set: in the file, and over it by flags.

    Args:
        others: what the parser knows of a call besides settings.
    """
    flags = {key: x for key, x in vars(parsed).items() if key not in others}
    if parsed.checkpoint:
        flags["model"] = parsed.checkpoint
    file = read_settings_file(Path(parsed.config)) if parsed.config else {}
    return {**{key: x for key, x in file.items() if ALIASES.get(key, key) not in flags}, **flags}


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """--quiet and --json, the same on every command that takes a while."""
    parser.add_argument("--quiet", action="store_true", help="Print nothing but errors.")
    parser.add_argument(
        "--json", action="store_true", help="Print one JSON object per line, for programs."
    )


def reporter(parsed: argparse.Namespace) -> Reporter:
    """The reporter that the flags ask for; its bars stand alone, without those of transformers."""
    from transformers.utils import logging as transformers_logging

    from q2n.logging import Reporter

    transformers_logging.disable_progress_bar()
    if parsed.json:
        return Reporter("json")
    return Reporter("quiet" if parsed.quiet else "bars")
