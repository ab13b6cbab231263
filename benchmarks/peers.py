"""The best-known peers' cells of the table that baselines.py makes: same model, windows and file.

    python benchmarks/peers.py --data FOLDER --results baselines.jsonl --environments FOLDER
    python benchmarks/peers.py ... --peers autoround-50 --settings "W2 g64"
    python benchmarks/baselines.py ... --table

A cell that is in the file is not repeated. Seconds are those of the quantization alone, as each
script counts them. All on asymmetric grids with one scale and zero point a row or group.
"""

import argparse
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from measuring.cells import add_conditions, kept
from measuring.peers import quantize
from protocol import SETTINGS


class Peer(NamedTuple):
    """A script beside this one, and its arguments besides the grid's."""

    script: str
    arguments: tuple[object, ...]


PEERS = {
    "llmcompressor-gptq": Peer("peer_llmcompressor.py", ("--stages", "linear")),
    "llmcompressor-awq": Peer("peer_llmcompressor.py", ("--algorithm", "awq")),
    "autoround-50": Peer("peer_autoround.py", ("--iters", 50)),
    "autoround-200": Peer("peer_autoround.py", ("--iters", 200)),
}


def main() -> None:
    options = parse_options()
    for seed, setting, peer in itertools.product(options.seeds, options.settings, options.peers):
        key = {
            "method": peer,
            "setting": setting,
            "variant": "alone",
            "seed": seed,
            "windows": options.windows,
        }
        work = partial(quantized, options, PEERS[peer], setting, seed)
        print(json.dumps(kept(options, key, work)), flush=True)


def quantized(
    options: argparse.Namespace, peer: Peer, setting: str, seed: int, folder: Path
) -> tuple[str, dict[str, Any]]:
    """Quantize with a peer below `folder`: where the result is, and what it cost."""
    grid = SETTINGS[setting]
    found = quantize(
        peer.script,
        ["--bits", grid["bits"], "--group-size", grid["group_size"], *peer.arguments],
        folder / "checkpoint",
        environment=options.environments / Path(peer.script).stem,
        model=options.model,
        text=options.data / options.calibration,
        windows=options.windows,
        length=options.length,
        seed=seed,
        protocol=options.protocol,
    )
    costs = {name: found[name] for name in ("seconds", "peak_mib", "versions")}
    return str(folder / "checkpoint"), costs


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_conditions(parser)
    parser.set_defaults(eval_dtype="float32")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument(
        "--settings", nargs="+", default=["W3 per channel", "W2 g64"], choices=SETTINGS
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument(
        "--environments", type=Path, required=True, help="folder for their packages"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
