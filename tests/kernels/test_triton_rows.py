"""The kernels for a GPU, on a CPU by Triton's interpreter, in a process of its own.

The interpreter is chosen when Triton is imported, and other tests import it without."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
]
PROGRAM = """
import torch
from kernels.test_packed_rows import random, trellis, uniform
from q2n.kernels.packed_triton import product_triton

cases = [uniform((rows, columns), bits, size, symmetric)
         for (rows, columns), bits, size, symmetric in [
             ((1, 37), 2, 16, False), ((20, 70), 3, 32, True), ((33, 65), 4, 7, False),
             ((17, 128), 8, 1000, False), ((5, 64), 5, 64, True)]]
cases += [trellis(shape, bits) for shape in [(1, 37), (33, 65), (170, 20)] for bits in (2, 3, 4)]
for weight in cases:
    for tokens in (1, 3, 8):
        for dtype in (torch.float32, torch.bfloat16):
            x = (random(tokens, weight.shape[1]) - 1).to(dtype)
            bias = random(weight.shape[0])
            exact = x.double() @ weight.dense(0, weight.shape[0]).double().T + bias
            close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
            torch.testing.assert_close(product_triton(x, weight, bias), exact.to(dtype), **close)
print(len(cases), "cases")
"""


def test_kernels_in_the_interpreter_multiply_as_the_dense_rows():
    paths = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["14", "cases"]
