"""How many threads numba and torch have, in processes of their own."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
COUNT = """
import numba, torch
from q2n.kernels.unpack import unpack_numba

def threads_of_a_loop():
    unpack_numba(torch.zeros(4, 3, dtype=torch.int32), 3, 32)
    return torch.get_num_threads(), numba.get_num_threads()

print(torch.get_num_threads())
print(threads_of_a_loop())
torch.set_num_threads(1)
print(threads_of_a_loop())
torch.set_num_threads(3)
print(threads_of_a_loop())
"""


@pytest.mark.parametrize(
    ("most_of_numba", "expected"),
    [(5, ["2", "(2, 2)", "(1, 1)", "(3, 3)"]), (2, ["2", "(2, 2)", "(1, 1)", "(3, 2)"])],
)
def test_a_loop_takes_the_threads_of_torch_and_leaves_torch_its_own(most_of_numba, expected):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "2",
        "NUMBA_NUM_THREADS": str(most_of_numba),
    }
    done = subprocess.run(
        [sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected
