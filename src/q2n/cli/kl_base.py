"""`q2n eval MODEL --kl-base FILE` and `--save-kl-base FILE`: llama.cpp's base files."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from q2n.cli.tasks import Measured
from q2n.errors import InputError

if TYPE_CHECKING:
    from q2n.logging import Reporter

BASE_FLAGS = ("kl_base", "save_kl_base")
"""Names of the flags that mean nothing to other measures."""
PROTOCOL = "llama.cpp"
_ON_TOKENS = ("batch_size", "block_by_block", "device", "dtype", "trust_remote_code")
"""Conditions that count where the tokens come from a base file."""


def add_base_flags(parser: ArgumentParser) -> None:
    """The two flags."""
    group = parser.add_argument_group("llama.cpp's base file of log probabilities")
    group.add_argument(
        "--kl-base",
        metavar="FILE",
        help="Compare with the model whose base file this is, on the tokens in it: what "
        "llama-perplexity --kl-divergence prints.",
    )
    group.add_argument(
        "--save-kl-base",
        metavar="FILE",
        help="Write the model's base file on --ppl; with --protocol llama.cpp.",
    )


def compared_to_base(parsed: Namespace, reporting: Reporter) -> Measured:
    """Each model beside the one of a base file."""
    from dataclasses import asdict

    from q2n.api import compare_to_kl_base
    from q2n.evaluation.llama_cpp.text import as_text
    from q2n.report.tables import fidelity_lines

    for model in parsed.models:
        on = {name: getattr(parsed, name) for name in _ON_TOKENS}
        found = compare_to_kl_base(model, parsed.kl_base, reporter=reporting, **on)
        line = {"model": model, "kl_base": parsed.kl_base, **asdict(found)}
        spread = ["errors from the spread of the windows:", *fidelity_lines(found.fidelity)]
        yield [line], [as_text(found.statistics), *spread]


def saved_base(parsed: Namespace, reporting: Reporter, conditions: dict[str, Any]) -> Measured:
    """Write the base file of one model.

    Raises:
        InputError: there are several models, no text, or another protocol.
    """
    from q2n.api import save_kl_base

    if parsed.models[1:] or parsed.ppl is None or parsed.protocol != PROTOCOL:
        raise InputError(
            f"--save-kl-base takes one model, --ppl and --protocol {PROTOCOL}, whose file it is"
        )
    [model] = parsed.models
    on = {name: value for name, value in conditions.items() if name != "protocol"}
    save_kl_base(model, parsed.save_kl_base, reporter=reporting, **on)
    line = {"model": model, "saved_kl_base": parsed.save_kl_base}
    yield [line], [f"wrote {parsed.save_kl_base}"]
