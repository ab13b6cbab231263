"""Two processes, started by torchrun, against one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed.rank_cases import CASES, blocks_of, run_case, save_models

import q2n
from q2n.pipeline.store import RunStore

pytestmark = pytest.mark.slow


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    worker = str(Path(__file__).with_name("rank_worker.py"))
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        + [worker, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("ranks")
    save_models(place)
    return place


def test_two_processes_come_to_what_one_does(place):
    done = torchrun("cases", str(place))
    assert done.returncode == 0, done.stderr[-4000:]
    for name in CASES:
        run_case(place, name, place / "alone" / name)
        assert blocks_of(place / "alone" / name) == blocks_of(place / "together" / name)
    in_memory, on_disk = (
        blocks_of(place / "together" / name) for name in ("gptq", "activations on disk")
    )
    assert len(in_memory) == 2 and in_memory == on_disk


def test_a_program_may_have_ranks_for_one_run_after_another(tmp_path):
    """What an earlier run wrote where ranks find each other is not read by a later one."""
    done = torchrun("again", str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "heard-0").read_text() == "0 at 0, 1 at 0"
    assert (tmp_path / "heard-5").read_text() == "0 at 5, 1 at 5"


def test_a_killed_rank_is_named_within_a_minute(place):
    done = torchrun("kill", str(place))
    seconds = time.time() - float((place / "killed").read_text())
    assert done.returncode != 0 and seconds < 60
    assert "error: rank 1 ended at model.layers.1: inputs of self_attn.q_proj" in done.stderr
    assert len(RunStore(place / "out.partial").finished()) == 1
    settings = {"windows": 6, "length": 48, "batch_size": 2, "group_size": 32}
    text = str(place / "text.txt")
    q2n.quantize(place / "llama", place / "out", corpus=text, resume=True, **settings)
    assert not (place / "out.partial").exists()
