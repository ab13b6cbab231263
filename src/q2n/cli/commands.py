"""What the command line takes: a parser with all commands."""

from collections.abc import Callable
from typing import Any

from q2n.cli.demo import add_demo
from q2n.cli.evaluate import add_eval
from q2n.cli.flags import Parser
from q2n.cli.inspect import add_inspect
from q2n.cli.methods import add_methods
from q2n.cli.plan import add_plan
from q2n.cli.preprocess import add_preprocess
from q2n.cli.quantize import add_quantize
from q2n.cli.report import add_report
from q2n.cli.sweep import add_sweep
from q2n.version import __version__

COMMANDS: tuple[Callable[[Any], None], ...] = (
    add_quantize,
    add_preprocess,
    add_plan,
    add_eval,
    add_inspect,
    add_report,
    add_sweep,
    add_methods,
    add_demo,
)
"""Each adds a subparser whose `run` default does the work."""

DESCRIPTION = "Quantize language models to 2-8 bits after training."


def build_parser() -> Parser:
    """The parser of `q2n`."""
    parser = Parser(prog="q2n", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"q2n {__version__}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser
