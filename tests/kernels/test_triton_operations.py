"""The kernels for a GPU on a CPU, on the cases of test_dispatch.py, by Triton's interpreter.

In a process of its own: the interpreter is chosen when Triton is imported."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
]
CASES = Path(__file__).with_name("test_dispatch.py")
KERNELS = [
    "round_columns_triton",
    "round_to_trellis_triton",
    "scale_zero_search_triton",
    "weighted_error_triton",
    "level_moments_triton",
]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_interpreted_kernel_agrees_with_its_reference(kernel, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(CASES), "-k", kernel, f"--basetemp={tmp_path}"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert " passed" in done.stdout
