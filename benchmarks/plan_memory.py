"""Does a run use the memory and the disk that `q2n plan` says?

Quantizes and measures a model in a process that looks every few milliseconds at the memory which it
holds, by stage, and prints the most of each beside what was planned. Memory is what the process
holds for itself, with the libraries; pages of checkpoint files that are mapped to be read do not
count, as the system takes them back when it needs them.

    python benchmarks/plan_memory.py smollm2-135m [--set windows=16 length=512 nullspace=paper ...]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import q2n
from q2n import run
from q2n.formats.format import Format
from q2n.pipeline import block_stages, sequential
from q2n.pipeline.allocation import Allocation
from q2n.pipeline.measure import Measure
from q2n.pipeline.quantize import Quantize
from q2n.pipeline.refit_block import RefitBlock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = [f"--{name.replace('_', '-')}={x}" for name, x in map(split, options.set)]
    if options.run:
        print(json.dumps(measured(options.model, dict(map(split, options.set)), options.run)))
        return
    with tempfile.TemporaryDirectory() as folder:
        plan = [sys.executable, "-m", "q2n.cli.main", "plan", options.model, "--json", *settings]
        planned = output(plan)
        again = [sys.executable, __file__, options.model, "--run", folder, "--set", *options.set]
        found = output(again)
    print(f"{'stage':10} {'planned MB':>11} {'measured MB':>12} {'s planned':>10} {'s':>7}")
    for stage in planned["stages"]:
        name = stage["name"]
        host = stage["host_bytes"] / 1e6
        print(
            f"{name:10} {host:11.0f} {found['peak'].get(name, 0) / 1e6:12.0f} "
            f"{stage['seconds']:10.1f} {found['seconds'].get(name, 0):7.1f}"
        )
    most = max(found["peak"].values())
    print(f"{'all':10} {planned['host_bytes'] / 1e6:11.0f} {most / 1e6:12.0f}")
    print(f"{'disk':10} {planned['disk_bytes'] / 1e6:11.1f} {found['disk'] / 1e6:12.1f}")


def split(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def output(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


class Watch:
    """The most memory and the time of each stage, and the most on the disk while it is written."""

    def __init__(self, folder: Path) -> None:
        self.stage, self.peak, self.seconds = "load", {}, {}
        self.folder, self.disk = folder, 0
        self.files = resident("RssFile")

    def look(self) -> None:
        now = resident("RssAnon") + self.files
        self.peak[self.stage] = max(self.peak.get(self.stage, 0), now)
        if self.stage == "write":
            self.disk = max(self.disk, nameless() + size(self.folder))

    def forever(self) -> None:
        while True:
            self.look()
            time.sleep(0.003)

    @contextmanager
    def within(self, stage: str):
        if self.stage == "allocate":  # its trials measure and solve too
            yield
            return
        before, self.stage, start = self.stage, stage, time.perf_counter()
        try:
            yield
        finally:
            self.look()
            passed = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0) + passed
            self.stage = before
            if before != "load":
                self.seconds[before] = self.seconds.get(before, 0) - passed

    def watch(self, owner: object, name: str, stage: str) -> None:
        """Count what a function does for a stage."""
        function = getattr(owner, name)

        @wraps(function)
        def watched(*args, **kwargs):
            with self.within(stage):
                return function(*args, **kwargs)

        setattr(owner, name, watched)


def nameless() -> int:
    """Bytes of files that the process holds open and that have no name any more."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(link).endswith("(deleted)"):
                found[link.stat().st_ino] = link.stat().st_size
        except OSError:  # closed since
            continue
    return sum(found.values())


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(x for x in status.splitlines() if x.startswith(field)).split()[1]) * 1024


def measured(model: str, settings: dict[str, str], folder: str) -> dict:
    from q2n.config.options import flags, table
    from q2n.config.reading import read_settings

    kinds = {flag.name: flag for flag in flags(list(table().owners))}
    typed = {name: kinds[name].parse(text) for name, text in settings.items()}
    read_settings(typed | {"model": model, "output": "x"})
    watch = Watch(Path(folder))
    for owner, name, stage in (
        (Allocation, "__call__", "allocate"),
        (Measure, "__call__", "measure"),
        (Quantize, "__call__", "solve"),
        (RefitBlock, "__call__", "refit"),
        (block_stages, "advance", "measure"),
        (sequential, "open_streams", "measure"),
        (run, "refit_stored", "refit"),
        (Format, "write", "write"),
        (run, "compare_written", "evaluate"),
    ):
        watch.watch(owner, name, stage)
    threading.Thread(target=watch.forever, daemon=True).start()
    out = Path(folder) / "out"
    q2n.quantize(model, out, **typed)
    return {"peak": watch.peak, "seconds": watch.seconds, "disk": watch.disk}


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
