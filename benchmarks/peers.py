"""AutoRound and llm-compressor beside q2n: their cells of the recipe `peers`.

    q2n sweep peers --output RUNS --data-dir FOLDER
    python benchmarks/peers.py --output RUNS --data-dir FOLDER --environments FOLDER
    q2n report RUNS

Same model, same windows, same texts: the peers run in environments of their own on the windows that
q2n would calibrate on, and what they leave is measured beside the original as q2n's cells are. A
cell that is there is not repeated. Seconds are those of the quantization alone, as each script
counts them.
"""

import argparse
import hashlib
import itertools
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from measuring.peers import quantize

from q2n.disk.whole import write_whole
from q2n.experiments.plan_file import read_plan
from q2n.experiments.plan_model import PlanModel
from q2n.experiments.surroundings import machine, software
from q2n.experiments.sweep import Runs
from q2n.experiments.texts import Original
from q2n.logging import Reporter
from q2n.report.experiment import ExperimentRecord

PLAN = "peers"


class Peer(NamedTuple):
    """A script beside this one, and its arguments besides the grid's."""

    script: str
    arguments: tuple[object, ...]


PEERS = {
    "llm-compressor, GPTQ": Peer("peer_llmcompressor.py", ("--stages", "linear")),
    "llm-compressor, AWQ": Peer("peer_llmcompressor.py", ("--algorithm", "awq")),
    "AutoRound, 50 iterations": Peer("peer_autoround.py", ("--iters", 50)),
    "AutoRound, 200 iterations": Peer("peer_autoround.py", ("--iters", 200)),
}


def main() -> None:
    options, plan = parse_options(), read_plan(PLAN)
    runs = Runs(options.output)
    for model, bits, peer, seed in itertools.product(
        plan.labels("model"), ("3", "2, groups of 64"), options.peers, options.seeds
    ):
        labels = {"model": model, "bits": bits, "tool": peer, "seed": seed}
        cell = hashlib.sha256(json.dumps([PLAN, labels]).encode()).hexdigest()[:16]
        file = runs.cells / f"{cell}-{cell}.json"
        if not file.exists():
            found = record(options, labels, cell)
            write_whole(file, json.dumps(found.to_json(), indent=1).encode())
            print(f"{labels}: {found.texts[0].divergence:.4f}", flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the sweep")
    parser.add_argument("--data-dir", required=True, help="folder of the texts")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--environments", type=Path, required=True, help="folder for their packages"
    )
    return parser.parse_args()


def record(options: argparse.Namespace, labels: dict[str, Any], cell: str) -> ExperimentRecord:
    """Quantize with a peer, and measure what it leaves."""
    plan, peer, reporter = read_plan(PLAN), PEERS[labels["tool"]], Reporter("bars")
    settings = {**plan.settings, **plan.labels("bits")[labels["bits"]], "seed": labels["seed"]}
    texts = {name: {**text, "data_dir": options.data_dir} for name, text in plan.texts.items()}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(dir=options.output / "work") as place:
        found = quantize(
            peer.script,
            ["--bits", settings["bits"], "--group-size", settings.get("group_size", -1)]
            + list(peer.arguments),
            Path(place) / "checkpoint",
            environment=options.environments / Path(peer.script).stem,
            model=labels["model"],
            corpus=settings["corpus"],
            data_dir=options.data_dir,
            windows=settings["windows"],
            length=settings["length"],
            seed=labels["seed"],
        )
        original = Original(PlanModel(labels["model"]), texts, reporter)
        measured = original.compared(Path(place) / "checkpoint")
    return ExperimentRecord(
        cell=cell,
        key=cell,
        plan=PLAN,
        title=plan.title,
        labels=labels,
        places={
            **plan.numbers({axis: labels[axis] for axis in ("model", "bits")}),
            "tool": len(plan.labels("tool")) + list(PEERS).index(labels["tool"]),
        },
        settings={"model": labels["model"], **settings, "tool": labels["tool"]},
        software={**software(), **found["versions"]},
        machine=machine(),
        started=started,
        command=f"python benchmarks/peers.py --peers {labels['tool']!r} --seeds {labels['seed']}",
        seconds={"quantization": found["seconds"]},
        peak_bytes=int(found["peak_mib"] * 2**20),
        bits_per_weight=None,
        texts=measured,
    )


if __name__ == "__main__":
    main()
