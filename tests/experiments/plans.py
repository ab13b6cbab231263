"""A small plan over a tiny model, as a file."""

import json
from pathlib import Path
from typing import Any

import yaml
from tiny import save_tiny, tiny_text

from q2n.report.experiment import ExperimentRecord


def place(folder: Path) -> Path:
    """A tiny checkpoint and two texts."""
    save_tiny(folder / "model")
    (folder / "text.txt").write_text(tiny_text())
    (folder / "other.txt").write_text(tiny_text()[::-1])
    return folder


def plan(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two steps, two seeds: four cells and the original."""
    text = {"ppl": str(folder / "text.txt"), "length": 16, "windows": 4}
    return {
        "name": "small",
        "settings": {"bits": 3, "corpus": str(folder / "text.txt"), "windows": 4, "length": 16},
        "axes": {
            "model": [str(folder / "model")],
            "step": {"alone": {}, "Q2N": {"nullspace": "paper"}},
            "seed": [0, 1],
        },
        "compare": "step",
        "texts": {"text": text},
        **changes,
    }


def quick(folder: Path, settings: dict[str, Any] | None = None, **changes: Any) -> str:
    """The file of a plan that takes seconds: one block, no calibration, two seeds and the
    original."""
    if not (folder / "model").exists():
        save_tiny(folder / "model", layers=1)
        (folder / "text.txt").write_text(tiny_text(40))
    values = {
        "name": "quick",
        "settings": {"model": str(folder / "model"), "method": "rtn", "bits": 3} | (settings or {}),
        "axes": {"seed": [0, 1]},
        "texts": {"text": {"ppl": str(folder / "text.txt"), "length": 16, "windows": 2}},
        **changes,
    }
    return written(values, folder)


def records(runs: Path) -> list[ExperimentRecord]:
    """All of a sweep's folder."""
    files = sorted((runs / "cells").glob("*.json"))
    return [ExperimentRecord.from_json(json.loads(file.read_text())) for file in files]


def written(values: dict[str, Any], folder: Path) -> str:
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(file)
