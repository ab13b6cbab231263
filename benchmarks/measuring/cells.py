"""Cells of a table that takes hours: a quantization and its perplexity each, done once.

One line a cell goes to a JSONL file; a cell that is in the file is not repeated, so a script made
of these can be stopped and started again. What q2n refuses is a result too: the line has the
message under `refused`. To measure a cell again, delete its line.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import q2n
from measuring.names import renamed
from q2n.api import Quantized
from q2n.data.protocols import PROTOCOLS
from q2n.errors import Q2NError
from q2n.evaluation.compare import Comparer, Comparison
from q2n.evaluation.evaluate import Conditions, checkpoint_folder, open_text, opening
from q2n.logging import Reporter

ORIGINAL = {"setting": "-", "variant": "original", "seed": None, "windows": None}
"""The key of the model that is not quantized."""
PERPLEXITY = ("perplexity", "standard_error", "sha256")
FIDELITY = ("divergence", "divergence_error", "same_top", "log_ratio", "by_window")
"""What is kept of a measurement beside the original."""
Quantize = Callable[[Path], tuple[str, dict[str, Any]]]
"""Quantizes into a folder that is deleted later: the model to evaluate, and what it cost."""


def add_conditions(parser: argparse.ArgumentParser) -> None:
    """The options that say where texts and results lie and what a cell is measured on."""
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--results", type=Path, required=True, help="JSONL file, one line a cell")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--calibration", default="wiki.train.head.raw")
    parser.add_argument("--evaluation", nargs="+", default=["wiki.test.raw"])
    parser.add_argument("--ppl-windows", type=int, default=64)
    parser.add_argument(
        "--protocol", default="q2n", choices=PROTOCOLS, help="a table is of one protocol"
    )
    parser.add_argument(
        "--eval-dtype",
        default="bfloat16",
        choices=("bfloat16", "float32"),
        help="of the models that are evaluated; float32 is faster on a CPU without bfloat16",
    )
    parser.add_argument(
        "--checkpoints", type=Path, help="folder in which checkpoints are kept, and found again"
    )
    parser.add_argument("--table", action="store_true", help="only print what is there")


def measured(options: argparse.Namespace, key: dict, settings: dict | None) -> dict[str, Any]:
    """The result of one cell of q2n; `settings` None: the original model."""
    work = None if settings is None else partial(_quantized, options, key, settings)
    return kept(options, key, work)


def kept(options: argparse.Namespace, key: dict, quantize: Quantize | None) -> dict[str, Any]:
    """The result of one cell, from the file or by doing it; `quantize` None: the original model."""
    conditions = {
        **key,
        "model": options.model,
        "length": options.length,
        "calibration": options.calibration if quantize else None,
        "evaluation": options.evaluation,
        "ppl_windows": options.ppl_windows,
        "protocol": options.protocol,
        "eval_dtype": options.eval_dtype,
    }
    for line in past(options.results):
        if all(line.get(name) == value for name, value in conditions.items()):
            return line
    try:
        found = _run(options, quantize)
    except Q2NError as cause:
        found = {"refused": f"{type(cause).__name__}: {cause}"}
    result = {**conditions, **found}
    with options.results.open("a") as stream:
        stream.write(json.dumps(result) + "\n")
    return result


def past(results: Path) -> list[dict[str, Any]]:
    """The cells that are done, those under former names too."""
    if not results.exists():
        return []
    return [renamed(json.loads(line)) for line in results.read_text().splitlines()]


def _run(options: argparse.Namespace, quantize: Quantize | None) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(dir=options.results.parent))
    try:
        model, facts = quantize(folder) if quantize else (options.model, {})
        return {**facts, **_likelihoods(options, model)}
    finally:
        shutil.rmtree(folder)


def _likelihoods(options: argparse.Namespace, model: str) -> dict[str, Any]:
    """A list of figures a name: one for each text; beside the original for any other model."""
    if model == options.model:
        alone = [q2n.evaluate(model, **_conditions(options, x)) for x in options.evaluation]
        return {name: [getattr(x, name) for x in alone] for name in PERPLEXITY}
    found = [_beside_original(options, model, text) for text in options.evaluation]
    return {
        **{name: [getattr(x.model, name) for x in found] for name in PERPLEXITY},
        **{name: [getattr(x.fidelity, name) for x in found] for name in FIDELITY},
    }


def _beside_original(options: argparse.Namespace, model: str, text: str) -> Comparison:
    on = Conditions.of(**_conditions(options, text))
    comparer = _comparer(options.model, on)
    return comparer.compare(model, opening(model, checkpoint_folder(model, on), on))


@cache
def _comparer(original: str, on: Conditions) -> Comparer:
    """The original runs once over each text."""
    folder, reporter = checkpoint_folder(original, on), Reporter()
    windows = open_text(folder, None, on, reporter)
    body = opening(original, folder, on)
    return Comparer(original, body, windows, batch_size=on.batch_size, reporter=reporter)


def _quantized(
    options: argparse.Namespace, key: dict, settings: dict, folder: Path
) -> tuple[str, dict[str, Any]]:
    output = folder / "checkpoint"
    if options.checkpoints is not None:
        name = "-".join(str(key[x]) for x in key if x != "windows").replace(" ", "_")
        output = options.checkpoints / name
    done = q2n.quantize(
        options.model,
        output,
        corpus=str(options.data / options.calibration),
        windows=key["windows"],
        length=options.length,
        seed=key["seed"],
        protocol=options.protocol,
        resume=True,
        **settings,
    )
    return str(done.directory), _facts(done)


def _facts(done: Quantized) -> dict[str, Any]:
    layers = done.record["layers"].values()
    return {
        "bits_per_weight": done.record["bits_per_weight"],
        "bits_per_weight_all": done.record["bits_per_weight_all"],
        "seconds": done.timings["quantization_seconds"],
        "bytes": done.bytes_after,
        "output_error": statistics.mean(layer.get("output_error", 0.0) for layer in layers),
    }


def _conditions(options: argparse.Namespace, text: str) -> dict[str, Any]:
    return {
        "ppl": str(options.data / text),
        "length": options.length,
        "windows": options.ppl_windows,
        "protocol": options.protocol,
        "dtype": options.eval_dtype,
        "batch_size": 4,
    }
