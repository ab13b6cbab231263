"""Perplexity against time: the cells that baselines.py and peers.py left in one file, as a picture.

    python benchmarks/time_curve.py --results baselines.jsonl --output time.png

A point is a mean over the seeds in the file; only cells with --length and --ppl-windows count.
Seconds are comparable only if one machine took them in one go.
"""

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measuring.cells import past
from peers import PEERS

WIDTHS = {"3 bits": ("W3 per channel",), "2 bits": ("W2 per channel", "W2 g64")}
Point = tuple[float, float]
"""Seconds and perplexity."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--ppl-windows", type=int, default=32)
    options = parser.parse_args()
    lines = [
        line
        for line in past(options.results)
        if (line["length"], line["ppl_windows"]) == (options.length, options.ppl_windows)
        and line["protocol"] == "q2n"
    ]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, (title, settings) in zip(figure.subplots(1, 2), WIDTHS.items(), strict=True):
        draw(axes, points([line for line in lines if line["setting"] in settings]))
        axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel="perplexity", title=title)
    figure.savefig(options.output, dpi=120)


def points(lines: list[dict[str, Any]]) -> dict[tuple[str, str, str], Point]:
    """By method, setting and variant."""
    seeds = defaultdict(list)
    for line in lines:
        if "seconds" in line:
            seeds[line["method"], line["setting"], line["variant"]].append(line)
    return {
        row: (
            statistics.mean(line["seconds"] for line in found),
            statistics.mean(line["perplexity"][0] for line in found),
        )
        for row, found in seeds.items()
    }


def draw(axes: Axes, found: dict[tuple[str, str, str], Point]) -> None:
    """One line a method and grid, from left to right; peers dashed."""
    for row in dict.fromkeys((method, setting) for method, setting, _ in found):
        steps = [(variant, point) for (*key, variant), point in found.items() if (*key,) == row]
        steps.sort(key=lambda step: step[1])
        style = "s--" if row[0] in PEERS else "o-"
        axes.plot(*zip(*(point for _, point in steps), strict=True), style, label=", ".join(row))
        for variant, point in steps:
            if variant != "alone":
                axes.annotate(f"{variant} ", point, fontsize="small", va="top", ha="right")
    axes.legend(fontsize="small")


if __name__ == "__main__":
    main()
