"""`q2n eval MODEL --ppl CORPUS [--reference ORIGINAL]`: perplexity and fidelity, with their
uncertainty and their conditions; `--tasks` and `--generation` (cli/tasks.py)."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q2n.cli.flags import add_output_flags, reporter
from q2n.cli.kl_base import BASE_FLAGS, add_base_flags, compared_to_base, saved_base
from q2n.cli.tasks import (
    TASK_FLAGS,
    Measured,
    add_task_flags,
    generated,
    require_tasks,
    task_scores,
)
from q2n.data.protocols import PROTOCOLS

if TYPE_CHECKING:
    from q2n.evaluation.results import PerplexityResult
    from q2n.logging import Reporter

DEFAULT_PROTOCOL = "q2n"
NOT_CONDITIONS = (
    *("command", "run", "models", "reference", "floor", "quiet", "json"),
    *TASK_FLAGS,
    *BASE_FLAGS,
)


def add_eval(commands: Any) -> None:
    """Register `q2n eval`."""
    parser = commands.add_parser(
        "eval",
        help="measure perplexity, KL divergence from a reference, tasks, generation",
        usage="q2n eval MODEL [MODEL ...] [--ppl CORPUS] [--tasks NAMES] [--generation] "
        "[--reference ORIGINAL] [options]",
        description="Perplexity of a full-precision or quantized model, with --reference also what "
        "it keeps of another model's predictions; scores on tasks; what it writes.",
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="Checkpoint folder, hub name, or packaged model (smollm2-135m, gemma3-270m); several "
        "with --reference.",
    )
    parser.add_argument("--ppl", help="Corpus name, file or folder.")
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
        default=DEFAULT_PROTOCOL,
        choices=PROTOCOLS,
        help="How the text is cut and what of it counts (docs/measuring.md); default: q2n.",
    )
    parser.add_argument(
        "--data-dir", help="Folder to read wikitext2, ptb and c4, or the tasks, from."
    )
    parser.add_argument("--split", help="Part of the corpus; default: the protocol's, or test.")
    parser.add_argument(
        "--length", type=int, help="Context length in tokens; default: the protocol's, or 2048."
    )
    parser.add_argument("--windows", type=int, help="At most so many windows.")
    parser.add_argument("--stride", type=int, help="Tokens between windows; default: no overlap.")
    parser.add_argument("--batch-size", type=int, default=1, help="Windows in one forward pass.")
    parser.add_argument(
        "--block-by-block",
        action="store_true",
        help="Have one block in memory at a time, for a model that does not fit; the figures are "
        "the same.",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... or auto.")
    parser.add_argument(
        "--dtype", default="auto", help="float32, bfloat16, float16, or auto: the checkpoint's."
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="Let a checkpoint run its own code."
    )
    add_base_flags(parser)
    add_task_flags(parser)
    add_output_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    """Evaluate and print the figures with what they were measured on."""
    from q2n.errors import InputError

    wanted = {
        _likelihoods(parsed): parsed.ppl or parsed.save_kl_base,
        compared_to_base: parsed.kl_base,
        task_scores: parsed.tasks,
        generated: parsed.generation,
    }
    measures = [measure for measure, want in wanted.items() if want not in (None, False)]
    if not measures:
        raise InputError(
            "nothing to measure: give --ppl CORPUS, --kl-base FILE, --tasks NAMES or --generation"
        )
    _require_text(parsed)
    require_tasks(parsed)
    _require_files(parsed)
    reporting = reporter(parsed)
    for measure in measures:
        for lines, shown in measure(parsed, reporting):
            if parsed.json:
                for line in lines:
                    print(json.dumps(line), flush=True)
            elif not parsed.quiet:
                _print(shown)


def _require_text(parsed: Namespace) -> None:
    """Refuse flags that say something of a text where none is measured.

    Raises:
        InputError: naming the first of them.
    """
    from q2n.errors import InputError

    of_text = ("floor", "split", "length", "windows", "stride")
    given = [name for name in of_text if getattr(parsed, name) is not None]
    given += ["reference"] if parsed.reference is not None and not parsed.generation else []
    given += ["protocol"] if parsed.protocol != DEFAULT_PROTOCOL else []
    given += ["block_by_block"] if parsed.block_by_block and parsed.kl_base is None else []
    if given and parsed.ppl is None:
        flag = f"--{given[0].replace('_', '-')}"
        raise InputError(f"{flag} is of a text, and none is measured: give --ppl CORPUS too")
    if parsed.floor is not None and parsed.reference is None:
        raise InputError("--floor compares a reference with itself: give --reference too")
    if parsed.save_kl_base is not None:
        for name in ("reference", "floor"):
            if name in given:
                raise InputError(
                    f"--save-kl-base writes a file and compares nothing: leave --{name} out"
                )


def _require_files(parsed: Namespace) -> None:
    """Refuse models and a base file that are not there before the first figure is measured: hours
    may pass until it is their turn.

    Raises:
        InputError: there is no such model or base file.
    """
    from q2n.evaluation.llama_cpp.base_file import BaseFile
    from q2n.models.checkpoint_files import resolve_checkpoint

    for model in (*parsed.models, parsed.reference):
        if model is not None:
            resolve_checkpoint(model, trust_remote_code=parsed.trust_remote_code)
    if parsed.kl_base is not None:
        BaseFile.open(Path(parsed.kl_base))


def _likelihoods(parsed: Namespace) -> Callable[[Namespace, Reporter], Measured]:
    """What is measured on a text."""
    if parsed.save_kl_base is not None:
        return lambda parsed, reporting: saved_base(parsed, reporting, _conditions(parsed))
    return _perplexities if parsed.reference is None else _comparisons


def _perplexities(parsed: Namespace, reporting: Reporter) -> Measured:
    from q2n.api import evaluate

    for model in parsed.models:
        result = evaluate(model, reporter=reporting, **_conditions(parsed))
        what = f"{model}: perplexity" if parsed.models[1:] else "perplexity"
        yield [{"model": model, "perplexity": asdict(result)}], [_line(what, result)]


def _comparisons(parsed: Namespace, reporting: Reporter) -> Measured:
    """Perplexities and fidelity; of several models in one table."""
    from q2n.api import compare_all
    from q2n.report.tables import bucket_table, comparison_table, fidelity_lines

    found = compare_all(
        parsed.models,
        parsed.reference,
        floor=parsed.floor,
        reporter=reporting,
        **_conditions(parsed),
    )
    lines = [
        {"model": model, "reference": parsed.reference, **asdict(each)}
        for model, each in zip(parsed.models, found, strict=True)
    ]
    first = found[0]
    shown: list[Any] = [_line("the reference: perplexity", first.reference)]
    if len(found) == 1:
        assert first.fidelity is not None
        shown = [_line("perplexity", first.model), *shown, *fidelity_lines(first.fidelity)]
        shown.append(bucket_table(first.fidelity))
    else:
        shown.append(comparison_table(dict(zip(parsed.models, found, strict=True))))
    if first.floor is not None:
        title = f"the reference against itself, {parsed.floor}:"
        shown += ["", title, *fidelity_lines(first.floor)]
    yield lines, shown


def _conditions(parsed: Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(parsed).items() if key not in NOT_CONDITIONS}


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
        screen.print(part, soft_wrap=isinstance(part, str), markup=False)
