"""docs/methods.md names every method, and its commands are ones that q2n takes."""

import re
import shlex
from pathlib import Path

import pytest

from q2n.cli.commands import build_parser
from q2n.cli.quantize import _settings
from q2n.config.options import table
from q2n.config.owners import build_plan
from q2n.config.reading import read_settings

TEXT = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
COMMANDS = re.findall(r"`(q2n quantize [^`]+)`", TEXT)


def test_every_method_is_there():
    assert [name for name in table().methods if f"`{name}`" not in TEXT] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_taken(command):
    parsed = build_parser().parse_args(shlex.split(command)[1:])
    build_plan(read_settings(_settings(parsed)))


def test_every_strategy_is_said():
    assert all(entry.strategy for entry in table().methods.values())
