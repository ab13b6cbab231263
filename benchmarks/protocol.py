"""What each step after GPTQ is worth on SmolLM2-135M and WikiText-2, with its spread.

Calibrates on a train text (windows drawn with each seed), evaluates on test texts. One line
a run goes to a JSONL file; a run that is in the file is not repeated, so this script can be
stopped and started again.

    python benchmarks/protocol.py --data FOLDER --results results.jsonl
    python benchmarks/protocol.py ... --variants gptq good best --settings 4g64 --seeds 0
    python benchmarks/protocol.py ... --variants good --windows 4 32 64
    python benchmarks/protocol.py ... --calibration c4.jsonl --evaluation wiki.test.raw ptb.txt
    python benchmarks/protocol.py ... --table

FOLDER holds the texts. Quantized in float32; evaluated in bfloat16.
"""

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import q2n

SETTINGS: dict[str, dict[str, Any]] = {
    "3pc": {"bits": 3, "group_size": -1},
    "2g64": {"bits": 2, "group_size": 64},
    "4g64": {"bits": 4, "group_size": 64},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn"},
    "gptq": {},
    "paper": {"nullspace": "paper"},
    "output row": {"nullspace": "output", "per": "row"},
    "output group": {"nullspace": "output"},
    "cross row": {"nullspace": "cross", "per": "row"},
    "cross group": {"nullspace": "cross"},
    "cross principal": {"nullspace": "cross", "directions": "principal"},
    "cross spectral": {"nullspace": "cross", "directions": "spectral"},
    "auto": {"nullspace": "auto"},
    "correct": {"correct": True},
    "correct, paper": {"correct": True, "nullspace": "paper"},
    "correct, output group": {"correct": True, "nullspace": "output"},
    "correct, cross row": {"correct": True, "nullspace": "cross", "per": "row"},
    "good": {"quality": "good"},
    "good, principal": {"quality": "good", "directions": "principal"},
    "good, spectral": {"quality": "good", "directions": "spectral"},
    "good, auto": {"quality": "good", "nullspace": "auto", "correction_held_out": True},
    "good, refit block": {"quality": "good", "refit": "block"},
    "best": {"quality": "best"},
    "best, refit both": {"quality": "best", "refit": "both"},
}


ORIGINAL = {"setting": "-", "variant": "original", "seed": None, "windows": None}


def main() -> None:
    options = parse_options()
    if not options.table:
        print(json.dumps(measured(options, ORIGINAL, None)))
        cells = itertools.product(
            options.seeds, options.settings, options.windows, options.variants
        )
        for seed, setting, windows, variant in cells:
            key = {"setting": setting, "variant": variant, "seed": seed, "windows": windows}
            settings = {"method": "gptq", **SETTINGS[setting], **VARIANTS[variant]}
            print(json.dumps(measured(options, key, settings)), flush=True)
    print_table(options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--settings", nargs="+", default=["3pc", "2g64"], choices=SETTINGS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--windows", type=int, nargs="+", default=[16])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--calibration", default="wiki.train.head.raw")
    parser.add_argument("--evaluation", nargs="+", default=["wiki.test.raw"])
    parser.add_argument("--ppl-windows", type=int, default=64)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    return parser.parse_args()


def measured(options: argparse.Namespace, key: dict, settings: dict | None) -> dict[str, Any]:
    """The result of one run, from the file or by doing it."""
    conditions = {
        **key,
        "length": options.length,
        "calibration": None if settings is None else options.calibration,
        "evaluation": options.evaluation,
        "ppl_windows": options.ppl_windows,
    }
    for line in past(options.results):
        if all(line.get(name) == value for name, value in conditions.items()):
            return line
    result = {**conditions, **run(options, key, settings)}
    with options.results.open("a") as stream:
        stream.write(json.dumps(result) + "\n")
    return result


def past(results: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )


def run(options: argparse.Namespace, key: dict, settings: dict | None) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(dir=options.results.parent))
    try:
        model, facts = options.model, {}
        if settings is not None:
            done = q2n.quantize(
                options.model,
                folder / "checkpoint",
                corpus=str(options.data / options.calibration),
                windows=key["windows"],
                length=options.length,
                seed=key["seed"],
                **settings,
            )
            model = str(done.directory)
            layers = done.record["layers"].values()
            facts = {
                "bits_per_weight": done.record["bits_per_weight"],
                "seconds": done.timings["quantization_seconds"],
                "output_error": statistics.mean(x.get("output_error", 0.0) for x in layers),
            }
        results = [evaluated(options, model, text) for text in options.evaluation]
        return {
            **facts,
            "perplexity": [result.perplexity for result in results],
            "standard_error": [result.standard_error for result in results],
            "windows_sha256": [result.sha256 for result in results],
        }
    finally:
        shutil.rmtree(folder)


def evaluated(options: argparse.Namespace, model: str, text: str) -> Any:
    return q2n.evaluate(
        model,
        ppl=str(options.data / text),
        length=options.length,
        windows=options.ppl_windows,
        dtype="bfloat16",
        batch_size=4,
    )


def print_table(options: argparse.Namespace) -> None:
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for line in past(options.results):
        if line["variant"] != "original":
            same = ("setting", "variant", "windows", "calibration")
            groups.setdefault((*(line[x] for x in same), *line["evaluation"]), []).append(line)
    print("\n| setting | variant | windows | calibration | perplexity by seed | bits | seconds |")
    print("|---|---|---|---|---|---|---|")
    for (setting, variant, windows, calibration, *_), lines in sorted(groups.items()):
        lines.sort(key=lambda line: line["seed"])
        values = ", ".join("/".join(f"{x:.1f}" for x in line["perplexity"]) for line in lines)
        seconds = ", ".join(f"{line['seconds']:.0f}" for line in lines)
        bits = lines[0]["bits_per_weight"]
        print(
            f"| {setting} | {variant} | {windows} | {calibration} | {values} | {bits:.2f} | "
            f"{seconds} |"
        )


if __name__ == "__main__":
    main()
