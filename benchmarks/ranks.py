"""What do N ranks save, what do they send, and how far is their result from that of one?

The same run by one process and by N, of one thread each. Beside the wall time, which counts on a
machine with nothing else to do, each stage's CPU seconds are taken call by call: of the same call
the slowest rank counts, and the sum over calls is what N free cores would take, collectives aside.

    python benchmarks/ranks.py MODEL WORK --ranks 2 --settings '{"corpus": "wikitext2", ..}'
"""

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

STAGES = ("load", "measure", "add sums", "solve", "exchange", "store", "advance")
SENT = ("all_reduce", "reduce", "broadcast")


def worker(work: Path, settings: dict[str, Any]) -> None:
    """One rank: quantize, and note the seconds of each call and the bytes of each collective."""
    import q2n.pipeline.block_stages as stages
    import q2n.pipeline.sequential as loop
    from q2n.api import quantize_among_ranks
    from q2n.distributed.launch import launched
    from q2n.pipeline.among_ranks import MeasureAmongRanks, QuantizeAmongRanks
    from q2n.pipeline.finish import Store
    from q2n.pipeline.measure import Measure
    from q2n.pipeline.quantize import Quantize
    from q2n.pipeline.store import RunStore

    calls: dict[str, list[tuple[float, float]]] = defaultdict(list)
    sent: dict[str, int] = dict.fromkeys(SENT, 0)

    def timed(owner: Any, name: str, stage: str) -> None:
        inner = getattr(owner, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                calls[stage].append((time.perf_counter() - wall, time.process_time() - cpu))

        setattr(owner, name, run)

    def counted(name: str) -> None:
        inner: Callable[..., Any] = getattr(dist, name)

        def run(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            sent[name] += tensor.numel() * tensor.element_size()
            return inner(tensor, *args, **kwargs)

        setattr(dist, name, run)

    for owner, name, stage in (
        (loop, "enter_block", "load"),
        (Measure, "sums", "measure"),
        (MeasureAmongRanks, "_counts", "add sums"),
        (MeasureAmongRanks, "_add", "add sums"),
        (Quantize, "__call__", "solve"),
        (QuantizeAmongRanks, "_exchanged", "exchange"),
        (Store, "__call__", "store"),
        (stages, "advance", "advance"),
    ):
        timed(owner, name, stage)
    for name in SENT:
        counted(name)
    RunStore.remove = lambda self: []  # type: ignore[method-assign]  # its codes are compared
    blocks = defaultdict(float)
    quantize_blocks = loop.SequentialLoop.run

    def whole(self: Any, *args: Any, **kwargs: Any) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        quantize_blocks(self, *args, **kwargs)
        blocks.update(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)

    loop.SequentialLoop.run = whole  # type: ignore[method-assign]
    with launched() as ranks:
        done = quantize_among_ranks(ranks, output=work / "out", **settings)
        found = {"calls": calls, "sent": sent, "blocks": blocks}
        if (
            done is not None
            and done.comparison is not None
            and done.comparison.fidelity is not None
        ):
            found["kl"] = done.comparison.fidelity.divergence
        (work / f"rank-{ranks.rank}.json").write_text(json.dumps(found))


def measured(work: Path, ranks: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What each rank noted; an earlier measurement in the folder counts."""
    files = [work / f"rank-{rank}.json" for rank in range(ranks)]
    if not all(file.exists() for file in files):
        work.mkdir(parents=True)
        (work / "settings.json").write_text(json.dumps(settings))
        alone, several = [sys.executable], [sys.executable, "-m", "torch.distributed.run"]
        several += ["--standalone", f"--nproc-per-node={ranks}"]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        subprocess.run(
            [*(alone if ranks == 1 else several), __file__, "--worker", str(work)],
            check=True,
            env={**os.environ, **threads},
        )
    return [json.loads(file.read_text()) for file in files]


def report(one: dict[str, Any], several: list[dict[str, Any]]) -> None:
    """Seconds by stage."""
    count = len(several)
    print(f"{'CPU seconds':>12} {'one':>8} {f'{count} ranks':>9} {'ratio':>6} {'efficiency':>10}")
    before = after = 0.0
    for stage in STAGES:
        alone = sum(cpu for _, cpu in one["calls"].get(stage, []))
        same = zip(*(rank["calls"].get(stage, []) for rank in several), strict=stage != "store")
        if stage == "store":
            same = zip(several[0]["calls"]["store"], strict=True)
        slowest = sum(max(cpu for _, cpu in call) for call in same)
        before, after = before + alone, after + slowest
        if alone:
            ratio = alone / slowest
            print(f"{stage:>12} {alone:8.2f} {slowest:9.2f} {ratio:6.2f} {ratio / count:10.0%}")
        else:
            print(f"{stage:>12} {alone:8.2f} {slowest:9.2f}")
    print(f"{'all stages':>12} {before:8.2f} {after:9.2f} {before / after:6.2f}")
    for what in ("cpu", "wall"):
        each = [rank["blocks"][what] for rank in several]
        shown = ", ".join(f"{seconds:.1f}" for seconds in each)
        print(f"block loop, {what}: {one['blocks'][what]:.1f} s against {shown} s")


def compare(one: Path, several: Path, ranks: list[dict[str, Any]]) -> None:
    """Codes, and what was sent against the least that must be."""
    from q2n.pipeline.store import RunStore

    first, second = (RunStore(work / "out.partial").layers() for work in (one, several))
    codes = different = stored = 0
    for name, layer in first.items():
        a, b = layer.tensors(), second[name].tensors()
        codes += a["codes"].numel()
        different += int((a["codes"] != b["codes"]).sum())
        stored += sum(tensor.numel() * tensor.element_size() for tensor in a.values())
    print(f"codes that differ: {different} of {codes} ({different / codes:.4%})")
    print(f"bytes of all layers as they are sent: {stored / 1e6:.1f} MB")
    for name, size in ranks[0]["sent"].items():
        print(f"payload of {name}: {size / 1e6:.1f} MB")


def main() -> None:
    if sys.argv[1] == "--worker":
        work = Path(sys.argv[2])
        worker(work, json.loads((work / "settings.json").read_text()))
        return
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("work", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--settings", default="{}", help="JSON of settings for q2n.quantize")
    own = parser.parse_args()
    settings = {"model": own.model, **json.loads(own.settings)}
    one = measured(own.work / "1", 1, settings)[0]
    several = measured(own.work / str(own.ranks), own.ranks, settings)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    report(one, several)
    compare(own.work / "1", own.work / str(own.ranks), several)
    if "kl" in one:
        print(f"KL divergence: {one['kl']:.6f} and {several[0]['kl']:.6f}")


if __name__ == "__main__":
    main()
