"""Two processes, started by torchrun, against one."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from distributed.rank_cases import CASES, run_case
from mixtures import tiny_mixture
from tiny import save_tiny, tiny_text

import q2n
from q2n.pipeline.store import RunStore

pytestmark = pytest.mark.slow

TIES = 1e-3
"""Share of codes that may differ: sums in another order differ in their last bits, and a value at
the border of two codes goes to the other one."""


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    worker = str(Path(__file__).with_name("rank_worker.py"))
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        + [worker, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("ranks")
    save_tiny(place / "llama", layers=2)
    tiny_mixture().save_pretrained(place / "mixture")
    (place / "text.txt").write_text(tiny_text())
    return place


@pytest.fixture(scope="module")
def place(models: Path) -> Path:
    """A folder with what one process and what two came to."""
    for name in CASES:
        run_case(models, name, models / "alone" / name)
    interrupted = models / "together" / "resumed"
    shutil.copytree(models / "alone" / "resumed", interrupted)
    for file in interrupted.glob("block-00001.*"):
        file.unlink()
    done = torchrun("cases", str(models))
    assert done.returncode == 0, done.stderr[-4000:]
    return models


def codes_of(folder: Path) -> dict[str, torch.Tensor]:
    layers = RunStore(folder).layers()
    return {name: layer.tensors()["codes"] for name, layer in layers.items()}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_choose_the_codes_of_one(place, name):
    one, two = (codes_of(place / which / name) for which in ("alone", "together"))
    assert list(one) == list(two)
    different = sum(int((one[key] != two[key]).sum()) for key in one)
    assert different <= TIES * sum(map(torch.numel, one.values()))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_choose_the_scales_of_one(place, name):
    """Where no code differs, for the scales of two levels apart are others."""
    one, two = (RunStore(place / which / name).layers() for which in ("alone", "together"))
    for key, layer in one.items():
        other = two[key]
        if torch.equal(layer.tensors()["codes"], other.tensors()["codes"]):
            torch.testing.assert_close(layer.dequantize(), other.dequantize(), rtol=1e-3, atol=1e-3)


def test_two_ranks_repeat_themselves_bit_for_bit(place):
    in_memory, on_disk = (
        {file.name: file.read_bytes() for file in (place / "together" / name).glob("*.safetensors")}
        for name in ("gptq", "activations on disk")
    )
    assert len(in_memory) == 2 and in_memory == on_disk


def test_routed_tokens_are_those_of_all_ranks(place):
    counted = [
        {
            key: layer.record["routed_tokens"]
            for key, layer in RunStore(folder).layers().items()
            if "experts" in key
        }
        for folder in (place / "alone" / "experts", place / "together" / "experts")
    ]
    assert counted[0] and counted[0] == counted[1]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ranks", "2 ranks and 1 calibration windows"),
        ("refit", "--refit block takes one rank"),
        ("settings", "rank 1 would do something else than rank 0: damping is 0.01 on rank 0, 1.01"),
    ],
)
def test_every_rank_refuses_before_work(place, name, says):
    for rank in (0, 1):
        assert says in json.loads((place / f"refused-{rank}.json").read_text())[name]
    assert not list(place.glob("refused*.partial"))


def test_a_killed_rank_is_named_within_a_minute(models):
    done = torchrun("kill", str(models))
    seconds = time.time() - float((models / "killed").read_text())
    assert done.returncode != 0 and seconds < 60
    assert "error: rank 1 ended at model.layers.1: inputs of self_attn.q_proj" in done.stderr
    partial = models / "killed-out.partial"
    assert len(RunStore(partial).finished()) == 1
    settings = {"windows": 6, "length": 48, "batch_size": 2, "group_size": 32}
    text = str(models / "text.txt")
    q2n.quantize(models / "llama", models / "killed-out", corpus=text, resume=True, **settings)
    assert not partial.exists()
