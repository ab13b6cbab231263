"""Quantizations that one process and several come to alike."""

from pathlib import Path
from threading import Lock
from typing import Any

import torch
from mixtures import tiny_mixture
from tiny import save_tiny, tiny_text

from q2n.config.owners import build_plan
from q2n.config.reading import read_settings
from q2n.data.windows import TokenWindows
from q2n.distributed.ranks import ALONE, Ranks
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore

GPTQ = {"method": "gptq", "bits": 3, "group_size": 32}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gptq": ("llama", GPTQ, {}),
    "activations on disk": ("llama", GPTQ, {"activations": "disk"}),
    "whole blocks": ("llama", GPTQ, {"true_sequential": False}),
    "held out": (
        "llama",
        {**GPTQ, "quality": "good", "scales_held_out": True},
        {"stream_share": 0.5},
    ),
    "stream": ("llama", {**GPTQ, "quality": "good"}, {"stream_share": 0.5}),
    "positions": ("llama", {**GPTQ, "nullspace": "paper", "gram": "mean_activation"}, {}),
    "no text": ("llama", {"method": "rtn", "bits": 3}, {}),
    "experts": ("mixture", GPTQ, {"expert_memory": 1e-4}),
}
"""Name -> model, settings, options of the loop."""
WINDOWS = 7
OPENING = Lock()
"""transformers opens one model of a process at a time."""


def save_models(place: Path) -> None:
    """The models of the cases, and a text."""
    save_tiny(place / "llama", layers=2)
    tiny_mixture().save_pretrained(place / "mixture")
    (place / "text.txt").write_text(tiny_text())


def run_case(
    place: Path, name: str, output: Path, ranks: Ranks = ALONE, batch_size: int = 2
) -> None:
    """Quantize every block that `output` does not hold yet."""
    model, settings, options = CASES[name]
    plan = build_plan(read_settings({**settings, "model": model, "output": "out"}))
    store, finished = RunStore(output), len(RunStore(output).finished())
    with OPENING:
        blocks = BlockwiseModel(open_source(place / model))
    ranks.gather(b"")  # all have counted and opened
    if ranks.is_first:
        store.start({}, {}, resume=True)
    loop = SequentialLoop(
        blocks,
        plan.method,
        store,
        LoopOptions(batch_size=batch_size, **options),
        ranks=ranks,
    )
    tokens = torch.randint(3, 128, (WINDOWS, 48), generator=torch.Generator().manual_seed(3))
    windows = TokenWindows(tokens=tokens, label="random tokens") if plan.reads_text else None
    loop.run(windows, finished)


def blocks_of(folder: Path) -> dict[str, bytes]:
    """What is stored of each block in a working folder."""
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
