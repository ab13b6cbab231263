"""Programs of the folder `programs`, run by the interpreters of other environments.

`make test-runtimes` builds these and names their folder in Q2N_RUNTIMES; without it every test
that asks for one is skipped, so that `make test` neither needs them nor takes their time.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

FOLDER = "Q2N_RUNTIMES"
PROGRAMS = Path(__file__).parent / "programs"
SURROUNDINGS = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "MLX_DISABLE_COMPILE": "1",  # it would call a C++ compiler
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def interpreter(name: str) -> Path:
    """Python of an environment; skips the test where there is none."""
    folder = os.environ.get(FOLDER)
    if not folder:
        pytest.skip("other runtimes are tested by `make test-runtimes`")
    python = Path(folder).absolute() / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment {name} in {folder}: `make test-runtimes` builds it")
    return python


def call(runtime: str, **asked: Any) -> Any:
    """What `programs/run_<runtime>.py` answers."""
    done = _run(runtime, asked)
    assert done.returncode == 0, done.stderr[-4000:]
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(answers[-1])  # workers that end may speak after it


def refusal(runtime: str, **asked: Any) -> str:
    """What it says when it stops."""
    done = _run(runtime, asked)
    assert done.returncode != 0, done.stdout[-4000:]
    return done.stdout + done.stderr


def _run(runtime: str, asked: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    program = PROGRAMS / f"run_{runtime}.py"
    kept = {key: x for key, x in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [interpreter(runtime), program, json.dumps(asked, default=str)],
        env={**kept, **SURROUNDINGS},
        capture_output=True,
        text=True,
        timeout=500,
    )
