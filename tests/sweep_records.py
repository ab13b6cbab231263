"""Records as a sweep would write them: made up, but of the shape and size of real ones."""

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from q2n.report.experiment import (
    ExperimentRecord,
    KindOfLayer,
    Label,
    SpectrumRecord,
    TaskScore,
    TextResult,
)

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TASKS = ("arc_challenge", "arc_easy", "hellaswag", "lambada", "piqa", "race", "winogrande")
BLOCKS = 30


def sha(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def text_result(
    text: str, divergence: float | None, seed: int = 0, windows: int = 16, **changes: Any
) -> TextResult:
    """Windows are hard or easy alike in every row; None: the original."""
    if divergence is None:
        plain: dict[str, Any] = {"perplexity": 36.6, "perplexity_error": 2.7}
    else:
        hard = random.Random(text)
        own = random.Random(f"{seed} {divergence}")
        by_window = [
            divergence * (1 + 0.2 * hard.gauss(0, 1) + 0.02 * own.gauss(0, 1))
            for _ in range(windows)
        ]
        plain = {
            "perplexity": 36.6 * math.exp(divergence),
            "perplexity_error": 2.7 * math.exp(divergence),
            "divergence": sum(by_window) / windows,
            "divergence_error": 0.05 * divergence,
            "same_top": math.exp(-divergence),
            "same_top_error": 0.005,
            "by_window": by_window,
        }
    facts = {"text": text, "protocol": "q2n", "length": 512, "windows": windows}
    return TextResult(**{**facts, "sha256": sha(text), **plain, **changes})


def task_scores(accuracy: float) -> list[TaskScore]:
    return [
        TaskScore(
            task=task,
            acc=accuracy + 0.02 * n,
            acc_error=0.02,
            acc_norm=accuracy + 0.02 * n + (0.03 if task == "hellaswag" else 0.0),
            acc_norm_error=0.02,
            questions=100,
            limit=100,
            shots=0,
            harness="0.4.13",
        )
        for n, task in enumerate(TASKS)
    ]


def layers(divergence: float, stepped: bool, blocks: int = BLOCKS) -> dict[str, KindOfLayer]:
    kinds = {}
    for n, kind in enumerate(KINDS):
        noise = random.Random(f"{kind} {divergence}")
        errors = [
            0.02 * divergence * (1 + n / 3 + math.sin(b / 4) / 3 + 0.2 * noise.random())
            for b in range(blocks)
        ]
        alpha = [1 + 0.01 * (n - 2) + 0.005 * noise.gauss(0, 1) for _ in range(blocks)]
        kinds[kind] = KindOfLayer(
            blocks=list(range(blocks)),
            output_error=errors,
            output_error_before=[1.1 * x for x in errors] if stepped else (),
            alpha=alpha if stepped else (),
            seconds={"seconds": 1.5 + n / 4} | ({"solver_seconds": 0.2 + n / 9} if stepped else {}),
        )
    return kinds


def spectrum(block: int, kind: str, width: int = 576) -> SpectrumRecord:
    noise = random.Random(f"{block} {kind}")
    places = [*range(16), *sorted({round(16 * 1.02**k) for k in range(1, 181)})]
    places = [x for x in places if x < width - 1] + [width - 1]
    slope = 1.2 + 0.3 * noise.random()
    values = [(80 if x == 0 else 9) / (1 + x) ** slope * math.exp(-3 * x / width) for x in places]
    return SpectrumRecord(
        layer=f"model.layers.{block}.{kind}",
        kind=kind,
        block=block,
        width=width,
        places=places,
        values=values,
        cuts={"ratio": 40 + 3 * block, "matrix_rank": width - 1, "adam_nscl": 300 + block},
    )


def record(
    labels: Mapping[str, Label], divergence: float | None = 0.7, **changes: Any
) -> ExperimentRecord:
    """One cell with these labels; `divergence` None: the original."""
    seed = int(labels.get("seed", 0))
    plan = changes.get("plan", "steps")
    facts: dict[str, Any] = {
        "cell": sha(plan, sorted(labels.items())),
        "key": sha(sorted(labels.items())),
        "plan": plan,
        "labels": labels,
        "places": dict.fromkeys(labels, 0),
        "settings": None if divergence is None else {"method": "gptq", "bits": 3},
        "software": {"q2n": "0.1.0", "torch": "2.9.0", "transformers": "5.10.0"},
        "machine": {"processor": "AMD EPYC 7B13", "threads": "1", "gpu": "none"},
        "model_sha256": sha("model"),
        "calibration_sha256": None if divergence is None else sha("calibration", seed),
        "started": "2026-11-26T14:00:00+00:00",
        "command": "q2n sweep steps.yaml --output runs --only abc",
        "seconds": {"texts": 8.0} | ({} if divergence is None else {"quantization": 24.5 + seed}),
        "peak_bytes": 1_400_000_000 + seed,
        "bytes": 153_572_592 if divergence is not None else 269_060_552,
        "bits_per_weight": None if divergence is None else 3.03,
        "bits_per_weight_all": None if divergence is None else 9.13,
        "texts": [text_result("WikiText-2", divergence, seed)],
    }
    return ExperimentRecord(**{**facts, **changes})


def refused(labels: Mapping[str, Label], why: str, **changes: Any) -> ExperimentRecord:
    nothing = {"texts": (), "bytes": None, "bits_per_weight": None, "seconds": {}}
    return record(labels, 0.7, **{**nothing, "refused": why, **changes})


# KL as on SmolLM2 (docs/results/fidelity.jsonl), bits per weight by method and width.
FOUND = {
    ("GPTQ", "3", "alone"): (1.651, 3.03),
    ("GPTQ", "3", "Q2N"): (1.618, 3.03),
    ("GPTQ", "2, groups of 64", "alone"): (4.906, 2.28),
    ("GPTQ", "2, groups of 64", "Q2N"): (3.721, 2.28),
    ("QuIP", "3", "alone"): (0.216, 3.02),
    ("QuIP", "3", "Q2N"): (0.220, 3.02),
    ("QuIP", "2, groups of 64", "alone"): (0.718, 2.02),
    ("QuIP", "2, groups of 64", "Q2N"): (0.667, 2.02),
    ("PB-LLM", "3", "alone"): (0.92, 3.2),
    ("PB-LLM", "3", "Q2N"): (0.81, 3.2),
}
MODELS = {"SmolLM2-135M": 1.0, "Gemma-3-270M": 0.85}
TEXTS = {"WikiText-2": 1.0, "C4": 1.15}


AXES = {
    "model": list(MODELS),
    "method": ["GPTQ", "QuIP", "PB-LLM", "OWQ"],
    "bits": ["3", "2, groups of 64"],
    "step": ["alone", "Q2N"],
    "seed": list(range(10)),
}


def places(labels: Mapping[str, Label]) -> dict[str, int]:
    return {axis: AXES[axis].index(place) for axis, place in labels.items()}


def sweep(seeds: Iterable[int] = (0, 1, 2), *, plan: str = "table6") -> list[ExperimentRecord]:
    """A plan with everything: originals, a step, tasks, layers, spectra, a refusal."""
    records = []
    started = (f"2026-11-26T14:{n // 60:02}:{n % 60:02}+00:00" for n in itertools.count())
    for model, harder in MODELS.items():
        records.append(
            record(
                {"model": model},
                None,
                plan=plan,
                title="Methods with and without the step",
                places=places({"model": model}),
                started=next(started),
                texts=[text_result(text, None) for text in TEXTS],
                tasks=task_scores(0.5),
                spectra=[spectrum(b, k) for k in ("q_proj", "down_proj") for b in (0, 14, 29)],
            )
        )
        for (method, bits, step), (divergence, width) in FOUND.items():
            for seed in seeds:
                labels = {"model": model, "method": method, "bits": bits, "step": step}
                records.append(
                    record(
                        {**labels, "seed": seed},
                        divergence,
                        plan=plan,
                        title="Methods with and without the step",
                        places=places({**labels, "seed": seed}),
                        started=next(started),
                        compare={"step": "alone"} if step != "alone" else {},
                        bits_per_weight=width,
                        bytes=round(269e6 - 12e6 * (16 - width)),
                        seconds={"quantization": 20.0 + 4 * len(method) + seed, "texts": 8.0},
                        texts=[
                            text_result(x, divergence * harder * more * (1 + 0.02 * seed), seed)
                            for x, more in TEXTS.items()
                        ],
                        tasks=task_scores(0.5 * math.exp(-divergence / 5)),
                        layers=layers(divergence, step != "alone"),
                    )
                )
        labels = {"model": model, "method": "OWQ", "bits": "3", "step": "alone"}
        why = "InputError: --target-bits 3.0 leaves no column in 16 bits: ask for at least 3.01"
        labels["seed"] = 0
        records.append(
            refused(labels, why, plan=plan, started=next(started), places=places(labels))
        )
    return records


def write_cells(records: Iterable[ExperimentRecord], folder: Path) -> Path:
    """As a sweep's folder."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    for each in records:
        (folder / "cells" / f"{each.cell[:16]}.json").write_text(json.dumps(each.to_json()))
    return folder
