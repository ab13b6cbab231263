"""EXL3's code against its definition."""

import numpy as np
import pytest
import torch
from oracles import exl3 as oracle

from q2n.linalg import exl3_code
from q2n.linalg.block_hadamard import block_hadamard

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("codebook", ["mul1", "mcg", "3inst"])
def test_values_are_bit_for_bit_the_codebook(codebook):
    found = exl3_code.values(codebook).numpy()
    expected = [oracle.value(state, codebook) for state in range(0, 2**16, 13)]
    np.testing.assert_array_equal(found[::13], np.array(expected, dtype=np.float32))
    assert abs(found.mean()) < 0.02


def test_the_walk_meets_every_weight_once():
    assert sorted(exl3_code.order().tolist()) == list(range(256))
    matrix = torch.randn(32, 48, generator=GENERATOR)
    tiles = exl3_code.to_tiles(matrix)
    assert tiles.shape == (2, 3, 256)
    assert torch.equal(exl3_code.from_tiles(tiles), matrix)
    # the rows and columns of the first and the last 8 weights, as the layout has them
    assert tiles[1, 2, :8].tolist() == [
        float(matrix[16 + row, 32 + column]) for column in (0, 8) for row in (0, 1, 8, 9)
    ]
    assert tiles[1, 2, -8:].tolist() == [
        float(matrix[16 + row, 32 + column]) for column in (7, 15) for row in (6, 7, 14, 15)
    ]


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_state_is_the_last_16_bits_of_the_circle(bits):
    codes = torch.randint(2**bits, (256,), generator=GENERATOR).to(torch.uint8)
    stream = "".join(f"{code:0{bits}b}" for code in codes.tolist())
    ends = [bits * (t + 1) + len(stream) for t in range(256)]
    expected = [int((stream * 2)[end - 16 : end], 2) for end in ends]
    assert exl3_code.states(codes, bits).tolist() == expected


def test_hadamard_of_128_neighbours():
    matrix = torch.randn(256, 3, generator=GENERATOR, dtype=torch.float64)
    expected = torch.from_numpy(oracle.hadamard(matrix.numpy()))
    both = block_hadamard(256)
    torch.testing.assert_close(both.apply_to_outputs(matrix), expected)
    torch.testing.assert_close(both.apply(matrix.T).T, expected)
    torch.testing.assert_close(both.apply_to_outputs(expected), matrix)
