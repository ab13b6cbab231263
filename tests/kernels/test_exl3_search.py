"""The search for EXL3's codes: against other codes, all implementations alike.

Triton's kernel runs on a CPU, in its interpreter, in a process of its own: the interpreter is
chosen when Triton is imported, and other tests import it without."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from q2n.kernels.exl3_search import (
    nearest_codes_numba,
    nearest_codes_reference,
    nearest_codes_triton,
)
from q2n.linalg import exl3_code

GENERATOR = torch.Generator().manual_seed(0)
VALUES = exl3_code.values("mul1")
WIDTHS = pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])


def gaussian(tiles):
    return torch.randn(tiles, 256, generator=GENERATOR)


def distance(tiles, codes, bits):
    return (VALUES[exl3_code.states(codes, bits)] - tiles).double().square().sum(-1)


@WIDTHS
def test_no_single_code_can_be_bettered(bits):
    """A changed code changes the states of 16 / bits weights."""
    (tile,), symbols = gaussian(1), torch.arange(2**bits, dtype=torch.uint8)
    (codes,) = nearest_codes_numba(tile[None], VALUES, bits)
    found = distance(tile, codes, bits)
    for place in range(0, 256, 5):
        changed = codes.repeat(2**bits, 1)
        changed[:, place] = symbols
        away = distance(tile, changed, bits)
        assert away.min() == found and away[codes[place].long()] == found


@WIDTHS
def test_a_tile_of_the_code_is_found(bits):
    codes = torch.randint(2**bits, (2, 256), generator=GENERATOR).to(torch.uint8)
    tiles = VALUES[exl3_code.states(codes, bits)]
    assert not distance(tiles, nearest_codes_numba(tiles, VALUES, bits), bits).any()


@pytest.mark.parametrize(
    ("bits", "size", "most"), [(1, 1.1, 0.285), (2, 1.0, 0.0715), (4, 0.87, 0.0048)]
)
def test_the_error_is_that_of_16_bit_states(bits, size, most):
    """Error over energy of Gaussian weights. 2^-2b is the least there is; levels of their own have
    0.363, 0.1175 and 0.0095 (Max 1960). For 2 bits the QTIP paper has 0.069."""
    tiles = size * gaussian(8)
    away = distance(tiles, nearest_codes_numba(tiles, VALUES, bits), bits)
    assert 4.0**-bits < float(away.sum() / tiles.square().sum()) < most


@pytest.mark.parametrize("bits", [2, 7])
def test_implementations_agree(bits):
    tiles = gaussian(2)
    expected = nearest_codes_reference(tiles, VALUES, bits)
    assert torch.equal(nearest_codes_numba(tiles, VALUES, bits), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_a_gpu_finds_the_same_codes(bits):
    tiles = gaussian(3)
    found = nearest_codes_triton(tiles.cuda(), VALUES.cuda(), bits).cpu()
    assert torch.equal(found, nearest_codes_numba(tiles, VALUES, bits))


def test_no_tiles_have_no_codes():
    for search in (nearest_codes_reference, nearest_codes_numba):
        assert search(gaussian(0), VALUES, 3).shape == (0, 256)


PROGRAM = """
import torch
from kernels.test_exl3_search import VALUES, gaussian
from q2n.kernels.exl3_search import nearest_codes_reference, nearest_codes_triton

for bits, tiles in ((3, gaussian(2)), (7, gaussian(1))):
    found = nearest_codes_triton(tiles, VALUES, bits)
    assert torch.equal(found, nearest_codes_reference(tiles, VALUES, bits)), bits
print("equal")
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_triton_kernel_in_its_interpreter_finds_the_same_codes():
    paths = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["equal"]
