"""The `q2n` command.

Exit codes: 0 done; 1 a failure of the program; 2 input that cannot be used, said in one
line; 130 interrupted (a quantization goes on with --resume).

What only prints (help, the version, `methods`, usage errors) imports neither torch nor
transformers: a command imports what it works with when it works.
"""

import sys
from collections.abc import Callable
from typing import Any

from q2n.cli.demo import add_demo
from q2n.cli.evaluate import add_eval
from q2n.cli.flags import Parser
from q2n.cli.inspect import add_inspect
from q2n.cli.methods import add_methods
from q2n.cli.quantize import add_quantize
from q2n.errors import Q2NError
from q2n.version import __version__

COMMANDS: tuple[Callable[[Any], None], ...] = (
    add_quantize,
    add_eval,
    add_inspect,
    add_methods,
    add_demo,
)
"""Each adds a subparser whose `run` default does the work."""

DESCRIPTION = "Quantize language models to 2, 3, 4 or 8 bits after training."


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = Parser(prog="q2n", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"q2n {__version__}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    try:
        parsed = parser.parse_args(arguments)
        parsed.run(parsed)
    except Q2NError as failure:
        return _fail(str(failure), failure.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted; an unfinished quantization goes on with --resume", 130)
    return 0


def _fail(message: str, code: int) -> int:
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    console.print("[bold red]error:[/]", end=" ")
    console.print(" ".join(message.split()), soft_wrap=True, markup=False)
    return code


if __name__ == "__main__":
    sys.exit(main())
