"""Flags from options: `Option`s of the configuration become command-line arguments."""

from argparse import Action
from collections.abc import Iterable
from typing import Any, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from q2n.config import Option
from q2n.logging import Reporter

ALIASES = {"ridge": "--lambda"}
"""The paper's name for an option where it is a Python keyword."""


class PlainHelp(DefaultHelpFormatter):
    """Help as it was written, line by line: our texts name defaults that the parser does not
    know."""

    def _get_help_string(self, action: Action) -> str:
        return action.help or ""

    def _split_lines(self, text: str, width: int) -> list[str]:
        wrap = super()._split_lines
        return [part for line in text.splitlines() for part in wrap(line, width)]


MEANS_WHEN_ALONE = {"nullspace": "cross"}
"""What an option that takes a word means without one."""


def new_parser(usage: str, description: str, *, config_file: bool = False) -> ArgumentParser:
    """A parser for one command; `config_file` gives it --config and --print-config."""
    parser = ArgumentParser(
        usage=f"q2n {usage}",
        description=description,
        formatter_class=PlainHelp,
        print_config=None,
        exit_on_error=False,
    )
    if config_file:
        parser.add_argument(
            "--config", action="config", help="YAML file of settings; flags after it win."
        )
        parser.add_argument(
            "--print-config", action="store_true", help="Print all settings as YAML and stop."
        )
    return parser


def add_options(parser: ArgumentParser, title: str, options: Iterable[Option]) -> None:
    """One flag an option; an option not given is None, so that its owner's default holds."""
    group = parser.add_argument_group(title)
    for option in options:
        flags = [f"--{option.name.replace('_', '-')}"]
        if option.name in ALIASES:
            flags.append(ALIASES[option.name])
        kind: dict[str, Any] = {"type": option.type, "metavar": option.name.upper()}
        if option.type is bool:
            kind |= {"nargs": "?", "const": True, "metavar": "BOOL"}
        elif option.name in MEANS_WHEN_ALONE:
            kind |= {"nargs": "?", "const": MEANS_WHEN_ALONE[option.name]}
        elif get_origin(option.type) is tuple:
            kind |= {"type": str, "nargs": "+"}
        group.add_argument(*flags, default=None, help=option.help, **kind)


def add_output_flags(parser: ArgumentParser) -> None:
    """--quiet and --json, the same on every command that takes a while."""
    parser.add_argument("--quiet", action="store_true", help="Print nothing but errors.")
    parser.add_argument(
        "--json", action="store_true", help="Print one JSON object a line, for programs."
    )


def reporter(parsed: Namespace) -> Reporter:
    """The reporter that the flags ask for."""
    if parsed.json:
        return Reporter("json")
    return Reporter("quiet" if parsed.quiet else "bars")
