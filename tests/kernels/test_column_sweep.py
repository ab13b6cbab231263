import pytest
import torch

from q2n.kernels import column_sweep as room
from q2n.kernels.rounding_rules import UniformRule
from q2n.linalg.factor import feedback


def problem(rows=37, columns=40, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, columns, generator=generator, dtype=dtype)
    weight = torch.randn(columns, rows, generator=generator, dtype=dtype)
    matrix = feedback(x.T @ x, 0.01).matrix
    scale = torch.rand(5, rows, generator=generator, dtype=dtype) / 4 + 0.2
    zero = torch.randint(5, 10, (5, rows), generator=generator).to(torch.uint8)
    return weight, matrix, scale, zero, torch.arange(columns) // 8


def run(block_size=16, dtype=torch.float64, **options):
    weight, matrix, *parameters = problem(dtype=dtype)
    return room.sweep(
        weight, matrix, UniformRule(*parameters, 15), block_size=block_size, **options
    )


def test_each_column_is_rounded_from_its_updated_value():
    weight, matrix, scale, zero, group = problem()
    found = run()
    updated = weight + matrix.T @ found.error
    codes = (torch.round(updated / scale[group]) + zero[group]).clamp(0, 15)
    assert torch.equal(found.codes, codes.to(torch.uint8))
    torch.testing.assert_close(found.error, weight - scale[group] * (codes - zero[group]))
    assert not torch.equal(codes, (torch.round(weight / scale[group]) + zero[group]).clamp(0, 15))


@pytest.mark.parametrize("block_size", [1, 7, 64])
def test_blocks_change_nothing_but_rounding_noise(block_size):
    assert torch.equal(run(block_size).codes, run(16).codes)


def test_two_runs_give_the_same_bytes():
    first, second = run(dtype=torch.float32), run(dtype=torch.float32)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.error, second.error)


def test_halves_go_to_the_even_neighbour():
    weight = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5]])
    found = room.sweep(
        weight,
        torch.zeros(1, 1),
        UniformRule(
            torch.ones(1, 5),
            torch.full((1, 5), 4, dtype=torch.uint8),
            torch.zeros(1, dtype=torch.int64),
            15,
        ),
        block_size=8,
    )
    assert (found.codes.int() - 4).tolist() == [[0, 2, 2, 0, -2]]
