"""Does a run that is killed anywhere come to the same bytes after --resume?

Ten configurations (methods, refits, formats, activations on disk, a checkpoint in shards, keys
shared between layers) of tiny models. Each is run once without interruption. Then runs are killed
(SIGKILL), one half at a random time, the other at a random operation on files, such as between the
rename of the checkpoint and the removal of the working folder; each is resumed until it is
complete, and some resumed runs are killed again. The checkpoint must be that of the whole run byte
for byte (all files but the timings), and nothing may lie beside it.

Each run is a fork of a process that has imported and compiled everything, so that 100 kills take
minutes. With `--signal INT` the runs are interrupted as Ctrl-C does it.

    python benchmarks/kills.py [--kills 100] [--seed 0] [--signal KILL|INT]
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

import q2n

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "NUMBA_THREADING_LAYER": "workqueue",
}
"""Pools of threads do not survive a fork."""
WINDOWS = {"windows": 4, "length": 16}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn", "bits": 4},
    "gptq good": {"method": "gptq", "bits": 3, "quality": "good"},
    "gptq paper, gptq_v2": {"method": "gptq", "bits": 4, "nullspace": "paper", "format": "gptq_v2"},
    "gptq best": {"method": "gptq", "bits": 3, "quality": "best", "refit_steps": 3},
    "gptq refit both, disk": {
        "method": "gptq",
        "bits": 3,
        "refit": "both",
        "refit_steps": 2,
        "activations": "disk",
    },
    "gptq dequantized, measured": {
        "method": "gptq",
        "bits": 3,
        "format": "dequantized",
        "ppl": "TEXT",
        "ppl_windows": 4,
    },
    "quip native": {"method": "quip", "bits": 2, "format": "native"},
    "quarot native": {"method": "quarot", "bits": 3, "format": "native", "kv_bits": 4},
    "owq good, disk": {
        "method": "owq",
        "bits": 3,
        "target_rank": 3,
        "quality": "good",
        "format": "native",
        "activations": "disk",
    },
    "pbllm": {"method": "pbllm", "format": "native"},
}
SHARED_KEYS = ("gptq refit both, disk", "rtn")
"""Configurations of a model whose later layers read keys and values of earlier ones."""
IN_SHARDS = ("gptq good", "quarot native", "pbllm")
"""Configurations whose checkpoint lies in several files."""
OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "open")
"""Audit events at which a run is killed; each is raised just before the operation."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=["KILL", "INT"], default="KILL")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    draw = random.Random(options.seed)
    stop = signal.Signals[f"SIG{options.signal}"]
    start, kills = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_models(place)
        for number, name in enumerate(CONFIGURATIONS):
            share = options.kills * (number + 1) // len(CONFIGURATIONS) - kills
            facts = Trials(place, name, draw, stop).run(share)
            kills += share
            print(f"{name:28} {facts}", flush=True)
    print(f"{kills} kills, equal bytes after each: {time.perf_counter() - start:.0f} s")


def make_models(place: Path) -> None:
    """Tiny checkpoints: a common one, the same in shards, one with shared keys; a text."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tiny import save_tiny, tiny_text

    save_tiny(place / "model")
    save_tiny(place / "shared", "gemma4_text", layers=4)
    save_tiny(place / "shards")
    tensors = load_file(place / "shards" / "model.safetensors")
    (place / "shards" / "model.safetensors").unlink()
    files = [f"model-{number + 1:05d}-of-00003.safetensors" for number in range(3)]
    weight_map = {name: files[number % 3] for number, name in enumerate(tensors)}
    for file in files:
        held = {name: x for name, x in tensors.items() if weight_map[name] == file}
        save_file(held, place / "shards" / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (place / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    (place / "text.txt").write_text(tiny_text())


class Trials:
    """Runs of one configuration."""

    def __init__(self, place: Path, name: str, draw: random.Random, stop: signal.Signals):
        self.place, self.name, self.draw, self.stop = place, name, draw, stop
        text = str(place / "text.txt")
        settings = {**WINDOWS, **CONFIGURATIONS[name], "corpus": text}
        self.settings = {key: text if x == "TEXT" else x for key, x in settings.items()}
        kinds = {**dict.fromkeys(IN_SHARDS, "shards"), **dict.fromkeys(SHARED_KEYS, "shared")}
        self.model = place / kinds.get(name, "model")
        self.after_rename = 0

    def run(self, kills: int) -> str:
        """Kill so many runs; returns what happened, in words."""
        self._quantize(self.place / "warm")  # compiles
        shutil.rmtree(self.place / "warm")
        whole, seconds, operations = self._uninterrupted()
        done = resumes = trials = 0
        while done < kills:
            output = self.place / "trial" / "checkpoint"
            resume = False
            while True:
                again = done < kills and (not resume or self.draw.random() < 0.5)
                kill = self._kill_at(seconds, operations) if again else None
                killed = self._forked(output, resume, kill)
                done += killed
                if not killed and not again:
                    break
                resumes, resume = resumes + 1, True
            self._compare(output, whole)
            trials += 1
        return (
            f"{seconds:.2f} s, {operations} operations on files: {done} kills in {trials} runs, "
            f"{resumes} resumes, {self.after_rename} kills after the rename"
        )

    def _uninterrupted(self) -> tuple[dict[str, bytes], float, int]:
        """Files of a whole run, its seconds and its operations on files."""
        output, counts = self.place / "whole" / "checkpoint", self.place / "operations"
        start = time.perf_counter()
        assert not self._forked(output, False, None)
        seconds = time.perf_counter() - start
        whole = files_of(output)
        shutil.rmtree(output.parent)
        assert not self._forked(output, False, lambda: count_operations(counts))
        assert files_of(output) == whole, f"{self.name}: two whole runs differ"
        shutil.rmtree(output.parent)
        return whole, seconds, int(counts.read_text())

    def _kill_at(self, seconds: float, operations: int) -> float | Callable[[], None]:
        """A random time, or what makes the run end itself at a random operation."""
        if self.draw.random() < 0.5:
            return self.draw.uniform(0, seconds)
        last = self.draw.randrange(operations)
        return lambda: stop_at_operation(last, self.stop)

    def _forked(self, output: Path, resume: bool, kill: float | Callable[[], None] | None) -> bool:
        """One run in a process of its own; returns whether it was killed."""
        pid = os.fork()
        if pid == 0:
            os._exit(self._child(output, resume, kill))
        if isinstance(kill, float):
            time.sleep(kill)
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                return self._ended(output, 0)
            os.kill(pid, self.stop)
        return self._ended(output, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def _child(self, output: Path, resume: bool, kill: float | Callable[[], None] | None) -> int:
        received: list[int] = []

        def stop(number: int, frame: Any) -> None:
            received.append(number)
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, stop)
        try:
            if callable(kill):
                kill()
            self._quantize(output, resume)
            return 0
        except BaseException:
            if received:  # in C code it becomes another exception, as the command line knows
                return 130
            traceback.print_exc()
            return 1

    def _ended(self, output: Path, code: int) -> bool:
        killed = code == (-signal.SIGKILL if self.stop == signal.SIGKILL else 130)
        if code != 0 and not killed:
            sys.exit(f"{self.name}: a run ended with {code}")
        self.after_rename += killed and output.exists()
        return killed

    def _quantize(self, output: Path, resume: bool = False) -> None:
        q2n.quantize(self.model, output, resume=resume, **self.settings)

    def _compare(self, output: Path, whole: dict[str, bytes]) -> None:
        found = files_of(output)
        different = [x for x in whole.keys() | found.keys() if whole.get(x) != found.get(x)]
        beside = [file.name for file in output.parent.iterdir() if file != output]
        if different or beside:
            sys.exit(f"{self.name}: {different} differ, {beside} lie beside the checkpoint")
        shutil.rmtree(output.parent)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if "timings" not in file.name}


def stop_at_operation(last: int, stop: signal.Signals) -> None:
    """End this process at its operation of that number."""
    seen = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if changes_files(event, arguments):
            if seen == last:
                os.kill(os.getpid(), stop)
            seen += 1

    sys.addaudithook(count)


def count_operations(file: Path) -> None:
    """Write the number of this process's operations on files when it ends."""
    seen = 0
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY)

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if changes_files(event, arguments):
            seen += 1
            os.pwrite(descriptor, str(seen).encode(), 0)

    sys.addaudithook(count)


def changes_files(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event announces an operation that changes files."""
    if event != "open":
        return event in OPERATIONS
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


if __name__ == "__main__":
    main()
