"""What does quantizing a large model cost on a GPU, stage by stage, next to what the device allows?

    python benchmarks/gpu.py                          # all blocks of Llama-3-8B's shapes
    python benchmarks/gpu.py --blocks 3               # three of them; the rest is extrapolated
    python benchmarks/gpu.py --model qwen3-30b-a3b
    python benchmarks/gpu.py --scale tiny --device cpu

Needs a GPU and this package: the weights are random, made one tensor at a time, and so are the
tokens. Then it runs the tests that are marked `gpu` (where there are tests, and `--no-tests` is not
given). A stage's floor is its bytes over the bandwidth, or its operations over the peak rate, of
the device (measuring/floors.py). `open` is the embeddings and whatever else comes once, and is not
extrapolated. `load` is what is waited for while a block is read; making random numbers stands for
the disk. `forward` holds whatever else the passes do: attention, norms, moves of activations.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measuring.floors import Work, find_device, floors
from measuring.random_source import RandomSource
from transformers import LlamaConfig, PretrainedConfig, Qwen3MoeConfig

from q2n.config.owners import build_method
from q2n.config.reading import read_settings
from q2n.data.windows import TokenWindows
from q2n.linalg.statistics import InputStatistics
from q2n.models.blocks import BlockwiseModel
from q2n.pipeline.block_stages import EachRound
from q2n.pipeline.block_state import BlockState
from q2n.pipeline.finish import advance
from q2n.pipeline.measure import Measure
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.quantize import Quantize
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore

MODELS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama3-8b": lambda: LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=VOCABULARY,
        max_position_embeddings=8192,
        rope_theta=500000.0,
    ),
    "qwen3-30b-a3b": lambda: Qwen3MoeConfig(
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        vocab_size=VOCABULARY,
        max_position_embeddings=8192,
    ),
}
"""Shapes of published models; experts count as far as the package finds them in a block."""
VOCABULARY = 4096
"""Of all: embeddings and head are not what is measured."""
TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
}
TINY_EXPERTS = {"moe_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2}

SETTINGS: dict[str, dict[str, Any]] = {
    "gptq": {"method": "gptq", "bits": 3, "group_size": 128},
    "gptq + q2n": {"method": "gptq", "bits": 3, "group_size": 128, "nullspace": True},
    "gptq good": {"method": "gptq", "bits": 3, "group_size": 128, "quality": "good"},
    "quip good": {"method": "quip", "bits": 2, "quality": "good"},
}
GOALS = {
    ("llama3-8b", "gptq + q2n"): 120,
    ("llama3-8b", "gptq good"): 240,
    ("llama3-8b", "quip good"): 600,
}
"""Seconds for the whole model with 128 windows of 2048 tokens, on an H100."""
STAGES = ("open", "load", "forward", "gram", "factor", "solve", "store", "other")


@dataclass
class Clock:
    """Seconds by stage. A stage within another one is taken out of it."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    sites: list[int] = field(default_factory=list)
    """Widths of the inputs that were measured."""
    _open: list[str] = field(default_factory=list)
    _last: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is done inside belongs to this stage; stages wait until the device has finished."""
        self._lap()
        self._open.append(name)
        try:
            yield
        finally:
            self._lap()
            self._open.pop()

    def _lap(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._last
        self._last = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a stage."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return call


def main() -> None:
    options = parse_options()
    device, config = torch.device(options.device), MODELS[options.model]()
    if options.scale == "tiny":
        config.update(TINY | (TINY_EXPERTS if hasattr(config, "num_experts") else {}))
    blocks, config.num_hidden_layers = (
        config.num_hidden_layers,
        min(options.blocks or config.num_hidden_layers, config.num_hidden_layers),
    )
    windows, length = (4, 32) if options.scale == "tiny" else (options.windows, options.length)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{options.model}, {config.num_hidden_layers} of {blocks} blocks, {options.scale} scale")
    print(f"{windows} windows of {length} tokens on {name}, torch {torch.__version__}")
    known = find_device(name)
    if known is None:
        print("This device is in no row of measuring/floors.py: no floors")
    factor = blocks / config.num_hidden_layers
    for setting in options.settings or SETTINGS:
        clock, work = run(setting, config, device, windows, length)
        least = floors(work, known) if known else {}
        goal = GOALS.get((options.model, setting)) if options.scale == "full" else None
        show(setting, clock, factor, least, goal)
    if not options.no_tests and device.type == "cuda":
        run_tests()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="llama3-8b")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, help="default: all of them")
    parser.add_argument("--blocks", type=int, help="run so many; the rest is extrapolated")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-tests", action="store_true", help="do not run the tests of kernels")
    options = parser.parse_args()
    if options.scale == "full" and torch.device(options.device).type == "cpu":
        parser.error("on a CPU this takes days: give --scale tiny")
    return options


def run(
    setting: str, config: PretrainedConfig, device: torch.device, windows: int, length: int
) -> tuple[Clock, Work]:
    """Quantize the model once, after a block of it to compile the kernels."""
    source = RandomSource(config, torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(config.vocab_size, (windows, length), generator=generator)
    method = build_method(read_settings({**SETTINGS[setting], "model": "-", "output": "-"}))
    for part in (tokens[:2], tokens):
        clock = Clock(device)
        with tempfile.TemporaryDirectory() as folder:
            store = RunStore(Path(folder) / "run")
            store.start({}, {}, resume=False)
            blocks = BlockwiseModel(source, device)
            loop = SequentialLoop(blocks, method, store, LoopOptions())
            timed_run(loop, clock, TokenWindows(tokens=part, label="random tokens"))
    shapes = [(out, width) for out, width in (x.shape for x in blocks.targets().values())]
    return clock, Work(shapes, clock.sites, tokens.numel(), 2 if loop.two_streams else 1)


def timed_run(loop: SequentialLoop, clock: Clock, windows: TokenWindows) -> None:
    """One run, its stages timed. What is derived from sums is `factor`; of a pass, what is not the
    sums is `forward`."""
    loop.stages = [timed_stage(stage, clock) for stage in loop.stages]
    once = InputStatistics.once

    def timed_once(self: InputStatistics, key: Any, compute: Callable[[], Any]) -> Any:
        return once(self, key, clock.timed("factor", compute))

    update = clock.timed("gram", InputStatistics.update)
    enter = clock.timed("other", SequentialLoop._quantize)
    load = clock.timed("load", BlockwiseModel.load_block)
    with (
        patch.multiple(InputStatistics, once=timed_once, update=update),
        patch.object(SequentialLoop, "_quantize", enter),
        patch.object(BlockwiseModel, "load_block", load),
        clock.stage("open"),
    ):
        loop.run(windows)


def timed_stage(
    stage: Callable[[BlockState], BlockState], clock: Clock
) -> Callable[[BlockState], BlockState]:
    """The stage under its name in the table."""
    if isinstance(stage, EachRound):
        rounds = replace(stage, stages=[timed_stage(each, clock) for each in stage.stages])

        def each_round(state: BlockState) -> BlockState:
            clock.sites.extend(site.width for site in state.sites)
            return rounds(state)

        return each_round
    kind = {Measure: "forward", Quantize: "solve"}
    return clock.timed("forward" if stage is advance else kind.get(type(stage), "store"), stage)


def show(
    setting: str, clock: Clock, factor: float, least: dict[str, float], goal: float | None
) -> None:
    """One table; `factor` makes the whole model of the blocks that ran."""
    print(f"\n{setting}\n{'stage':>10} {'seconds':>9} {'floor':>9} {'of floor':>9}")
    rows = {x: s if x == "open" else factor * s for x, s in clock.seconds.items()}
    rows["total"] = total = sum(rows.values())
    for stage, seconds in rows.items():
        floor = factor * (sum(least.values()) if stage == "total" else least.get(stage, 0.0))
        line = f"{stage:>10} {seconds:9.2f}"
        if floor:
            line += f" {floor:9.2f} {seconds / floor:8.1f}x"
        print(line)
    if goal is not None:
        print(f"{'goal':>10} {goal:9.0f} s: {'reached' if total <= goal else 'missed'}")


def run_tests() -> None:
    """Those that need a GPU, of the checkout that this script lies in."""
    root = Path(__file__).parents[1]
    if not (root / "tests").is_dir():
        return
    print("\nTests marked gpu", flush=True)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"], cwd=root)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
