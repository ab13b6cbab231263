"""`q2n eval MODEL --ppl CORPUS [--reference ORIGINAL]`: perplexity and fidelity, with their
uncertainty and their conditions."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from q2n.cli.flags import add_output_flags, reporter
from q2n.data.protocols import PROTOCOLS

if TYPE_CHECKING:
    from q2n.evaluation.perplexity import PerplexityResult
    from q2n.logging import Reporter

NOT_CONDITIONS = ("command", "run", "model", "reference", "floor", "quiet", "json")


def add_eval(commands: Any) -> None:
    """Register `q2n eval`."""
    parser = commands.add_parser(
        "eval",
        help="measure perplexity, and KL divergence from a reference",
        usage="q2n eval MODEL --ppl CORPUS [--reference ORIGINAL] [options]",
        description="Perplexity of a full-precision or quantized model; with --reference also what "
        "it keeps of another model's predictions.",
    )
    parser.add_argument(
        "model", help="Checkpoint folder, hub name, or packaged model (smollm2-135m, gemma3-270m)."
    )
    parser.add_argument("--ppl", required=True, help="Corpus name, file or folder.")
    parser.add_argument(
        "--reference",
        help="Model to compare with, token by token: the original of a quantized one. Both are in "
        "memory one after the other.",
    )
    parser.add_argument(
        "--floor",
        help="Compare the reference with itself too: in this dtype (bfloat16), or with noise of "
        "this relative size after every block (0.002).",
    )
    parser.add_argument(
        "--protocol",
        default="q2n",
        choices=PROTOCOLS,
        help="How the text is cut and what of it counts (docs/measuring.md); default: q2n.",
    )
    parser.add_argument("--data-dir", help="Folder to read wikitext2, ptb and c4 from.")
    parser.add_argument("--split", help="Part of the corpus; default: the protocol's, or test.")
    parser.add_argument(
        "--length", type=int, help="Context length in tokens; default: the protocol's, or 2048."
    )
    parser.add_argument("--windows", type=int, help="At most so many windows.")
    parser.add_argument("--stride", type=int, help="Tokens between windows; default: no overlap.")
    parser.add_argument("--batch-size", type=int, default=1, help="Windows in one forward pass.")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... or auto.")
    parser.add_argument(
        "--dtype", default="auto", help="float32, bfloat16, float16, or auto: the checkpoint's."
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="Let a checkpoint run its own code."
    )
    add_output_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    """Evaluate and print the figures with what they were measured on."""
    import json

    reporting = reporter(parsed)
    facts, shown = _likelihood(parsed, reporting)
    if parsed.json:
        print(json.dumps({"model": parsed.model, **facts}))
    elif not parsed.quiet:
        _print(shown)


def _likelihood(parsed: Namespace, reporting: Reporter) -> tuple[dict[str, Any], list[Any]]:
    """Perplexity and, beside a reference, fidelity: for a program, and for a person."""
    from dataclasses import asdict

    from q2n.api import compare, evaluate
    from q2n.errors import InputError
    from q2n.report.tables import bucket_table, fidelity_lines

    on = {key: value for key, value in vars(parsed).items() if key not in NOT_CONDITIONS}
    if parsed.reference is None:
        if parsed.floor is not None:
            raise InputError("--floor compares a reference with itself: give --reference too")
        result = evaluate(parsed.model, reporter=reporting, **on)
        return {"perplexity": asdict(result)}, [_line("perplexity", result)]
    found = compare(parsed.model, parsed.reference, floor=parsed.floor, reporter=reporting, **on)
    assert found.fidelity is not None
    facts = {
        "reference": parsed.reference,
        "perplexity": asdict(found.model),
        "reference_perplexity": asdict(found.reference),
        "fidelity": asdict(found.fidelity),
    }
    shown = [
        _line("perplexity", found.model),
        _line("of the reference", found.reference),
        *fidelity_lines(found.fidelity),
    ]
    if found.floor is not None:
        facts["floor"] = asdict(found.floor)
        shown += [f"the reference against itself, {parsed.floor}:", *fidelity_lines(found.floor)]
    return facts, [*shown, bucket_table(found.fidelity)]


def _line(what: str, result: PerplexityResult) -> str:
    from q2n.report.tables import with_error

    overlap = f"stride {result.stride}" if result.stride else "no overlap"
    return (
        f"{what} {with_error(result.perplexity, result.standard_error)}  "
        f"({result.label}: {result.windows} windows of {result.length} tokens, {overlap}; "
        f"protocol {result.protocol}; {result.seconds:.0f} s)"
    )


def _print(shown: list[Any]) -> None:
    from q2n.logging import Screen

    screen = Screen(highlight=False)
    for part in shown:
        screen.print(part, soft_wrap=True, markup=False)
