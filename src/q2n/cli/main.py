"""The `q2n` command.

Exit codes: 0 done; 1 a failure of the program; 2 input that cannot be used, said in one
line; 130 interrupted (a quantization goes on with --resume).
"""

import sys
from argparse import ArgumentError
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from transformers.utils import logging as transformers_logging

import q2n
from q2n.cli.demo import add_demo
from q2n.cli.evaluate import add_eval
from q2n.cli.flags import PlainHelp
from q2n.cli.inspect import add_inspect
from q2n.cli.methods import add_methods
from q2n.cli.quantize import add_quantize
from q2n.errors import InputError, Q2NError

COMMANDS: dict[str, Callable[[Any], Callable[[Namespace], None]]] = {
    "quantize": add_quantize,
    "eval": add_eval,
    "inspect": add_inspect,
    "methods": add_methods,
    "demo": add_demo,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = ArgumentParser(
        prog="q2n", description=q2n.__doc__, formatter_class=PlainHelp, exit_on_error=False
    )
    commands = parser.add_subcommands(required=True, dest="command")
    runners = {name: add(commands) for name, add in COMMANDS.items()}
    transformers_logging.disable_progress_bar()  # ours say more
    try:
        parsed = parser.parse_args(arguments)
        runners[parsed.command](parsed[parsed.command])
    except ArgumentError as failure:
        return _fail(str(failure), InputError.exit_code)
    except Q2NError as failure:
        return _fail(str(failure), failure.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted; an unfinished quantization goes on with --resume", 130)
    return 0


def _fail(message: str, code: int) -> int:
    console = Console(stderr=True, highlight=False)
    console.print("[bold red]error:[/]", end=" ")
    console.print(" ".join(message.split()), soft_wrap=True, markup=False)
    return code


if __name__ == "__main__":
    sys.exit(main())
