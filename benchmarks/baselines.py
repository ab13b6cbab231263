"""Every method on SmolLM2-135M and WikiText-2: alone, with Q2N as in the paper, with the presets.

Calibrates on a train text, evaluates on a test text. One line a cell goes to a JSONL file; a cell
that is in the file is not repeated, so this script can be stopped and started again. A
combination that q2n refuses is a cell with its message.

    python benchmarks/baselines.py --data FOLDER --results baselines.jsonl
    python benchmarks/baselines.py ... --methods gptq owq --variants alone best --settings "W2 g64"
    python benchmarks/baselines.py ... --table

Each method in the smallest public format that can hold it, else in the native one. Rows whose
choice of text matters most (`SPREAD`) have --more-seeds besides.
"""

import argparse
import itertools
import json
from typing import Any, NamedTuple

from measuring.cells import ORIGINAL, add_conditions, measured, past
from measuring.paired import difference, divergence, same_top

from q2n.config.owners import build_plan
from q2n.config.reading import read_settings
from q2n.formats.choice import formats_for

W2, W3, W2_G64 = "W2 per channel", "W3 per channel", "W2 g64"
GROUPS = {"bits": 2, "group_size": 64}
IN_A_BASIS = {"incoherence": "kronecker", "damping": 0.0201}
"""QuIP without what makes it worse."""
REACH = {"grid": "uniform", "clip_sigma": 2.4}
PUBLISHED = {**REACH, "clamp_first": True, "incoherence_rescale": True}
"""QuIP's, which the quality levels replace."""
GAUSSIAN = {"grid": "lloyd-max", "descent_passes": 4}


def per_channel(**options: Any) -> dict[str, dict[str, Any]]:
    """2 and 3 bits per weight, one scale per row or per matrix."""
    return {W2: {"bits": 2, **options}, W3: {"bits": 3, **options}}


METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "rtn": {**per_channel(), W2_G64: GROUPS},
    "gptq": {**per_channel(), W2_G64: GROUPS},
    "quip": per_channel(),
    "ldlq incoherence": per_channel(**IN_A_BASIS, grid="uniform"),
    "ldlq incoherence clip_sigma 2.4": per_channel(**IN_A_BASIS, **REACH),
    "ldlq incoherence lloyd-max": per_channel(**IN_A_BASIS, **GAUSSIAN),
    "ldlq incoherence trellis": per_channel(**IN_A_BASIS, grid="trellis"),
    "quip as published": per_channel(**PUBLISHED),
    "quip unclamped": per_channel(**{**PUBLISHED, "clamp_first": False}),
    "pbllm": {"90% low": {"low_fraction": 0.9}},
    "leanquant": {**per_channel(), W2_G64: {**GROUPS, "levels": "uniform"}},
    "owq": {
        W2_G64: {**GROUPS, "target_bits": 2.05},
        W3: {"bits": 3, "target_bits": 3.01},
    },
    "quarot": {"W4A4": {"bits": 4}, "W4A4KV4": {"bits": 4, "kv_bits": 4}},
    "quarot unrotated": {"W4A4": {"bits": 4, "rotate": "none"}},
}
"""Settings of each row by the name of the row, whose first word is the method's: bits of a weight
and scales per channel or in groups of 64 (g64), or widths of weights, activations and cache."""
VARIANTS: dict[str, dict[str, Any]] = {
    "alone": {},
    "paper": {"nullspace": "paper"},
    "good": {"quality": "good"},
    "best": {"quality": "best"},
}
DEFAULTS = ["alone", "paper", "good"]
"""The variants that are measured unless others are asked for: `best` takes 2.5 times as long as
`good`."""
ALONE = ("rtn", "quarot unrotated")
"""Yardsticks: nothing is put around them."""
SPREAD = ("gptq", "quip")


class Cell(NamedTuple):
    """One cell: its place in the table and what is passed to `quantize`."""

    key: dict[str, Any]
    settings: dict[str, Any]


def main() -> None:
    options = parse_options()
    if not options.table:
        original = {**ORIGINAL, "method": "-"}
        print(json.dumps(measured(options, original, None)), flush=True)
        for cell in cells(options):
            print(json.dumps(measured(options, cell.key, cell.settings)), flush=True)
    print_table(options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    settings = list(dict.fromkeys(setting for row in METHODS.values() for setting in row))
    add_conditions(parser)
    parser.set_defaults(eval_dtype="float32")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--settings", nargs="+", default=settings, choices=settings)
    parser.add_argument("--variants", nargs="+", default=DEFAULTS, choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--more-seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--windows", type=int, default=16)
    return parser.parse_args()


def cells(options: argparse.Namespace) -> list[Cell]:
    """In the order in which they are measured: every row with the first seeds, then the rest."""
    rows = [
        (method, setting, variant)
        for method in options.methods
        for setting, variant in itertools.product(METHODS[method], options.variants)
        if setting in options.settings and (variant == "alone" or method not in ALONE)
    ]
    seeded = [(row, seed) for seed in options.seeds for row in rows]
    seeded += [(row, seed) for seed in options.more_seeds for row in rows if row[0] in SPREAD]
    return [cell(*row, seed, options.windows) for row, seed in dict.fromkeys(seeded)]


def cell(method: str, setting: str, variant: str, seed: int, windows: int) -> Cell:
    """With the first format of the list that can hold what is stored."""
    settings = {"method": method.split()[0], **METHODS[method][setting], **VARIANTS[variant]}
    storage = build_plan(read_settings(settings)).storage
    return Cell(
        {
            "method": method,
            "setting": setting,
            "variant": variant,
            "seed": seed,
            "windows": windows,
        },
        {**settings, "format": formats_for(storage)[0]},
    )


def print_table(options: argparse.Namespace) -> None:
    """Of all cells in the file that were measured in the conditions asked for."""
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in past(options.results):
        same = ("model", "length", "evaluation", "protocol")
        if all(line[name] == getattr(options, name) for name in same):
            rows.setdefault((line["method"], line["setting"], line["variant"]), []).append(line)
    print(
        "\n| method | setting | variant | perplexity by seed | KL from the original (by seed) | "
        "KL less that of alone | same top % | bits | seconds | MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (method, setting, variant), lines in rows.items():
        lines.sort(key=lambda line: line["seed"] or 0)
        alone = rows.get((method, setting, "alone"), [])
        print(f"| {method} | {setting} | {variant} | {' | '.join(figures(lines, alone))} |")


def figures(lines: list[dict[str, Any]], alone: list[dict[str, Any]]) -> list[str]:
    """The columns of one row, from its cells by seed and those of the method alone."""
    first = lines[0]
    if "refused" in first:
        return [f"refused: {first['refused']}", *[""] * 6]
    perplexities = ", ".join("/".join(f"{x:.4g}" for x in x["perplexity"]) for x in lines)
    seconds = ", ".join(f"{line['seconds']:.0f}" for line in lines if "seconds" in line)
    bits = f"{first['bits_per_weight']:.2f}" if "bits_per_weight" in first else ""
    size = f"{first['bytes'] / 1e6:.1f}" if "bytes" in first else ""
    return [perplexities, *fidelity(lines, alone), bits, seconds, size]


def fidelity(lines: list[dict[str, Any]], alone: list[dict[str, Any]]) -> list[str]:
    """Divergence, its paired difference from that of the method alone, same top token; of cells
    that have them."""
    known, others = ([x for x in row if "divergence" in x] for row in (lines, alone))
    if not known:
        return [""] * 3
    less = difference(known, others) if others and known != others else ""
    return [divergence(known), less, same_top(known)]


if __name__ == "__main__":
    main()
