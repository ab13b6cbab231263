import pytest
import torch

from q2n.grids.granularity import PerGroup
from q2n.grids.uniform import UniformGrid
from q2n.layers.outliers import OutlierLinear
from q2n.layers.quantized import Trainable
from q2n.layers.uniform import UniformLinear

ROWS, COLUMNS = 4, 20
WEAK = torch.tensor([17, 2, 16, 9])


def layer(dtype=torch.bfloat16, weak=WEAK):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    scale, zero = UniformGrid(bits=3, granularity=PerGroup(8, ragged=True)).fit(weight, dtype, "")
    grid = UniformLinear(
        codes=torch.randint(0, 8, weight.shape, generator=generator).to(torch.uint8),
        scale=scale,
        zero=zero,
        bits=3,
        group_size=8,
        symmetric=False,
    )
    return OutlierLinear.of(grid, weak, weight[:, weak]), grid, weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weak_columns_have_values_and_others_codes(dtype):
    example, grid, weight = layer(dtype)
    stored = torch.float16 if dtype == torch.float32 else dtype
    expected = grid.dequantize()
    expected[:, WEAK] = weight[:, WEAK].to(stored).float()
    assert torch.equal(example.dequantize(), expected)
    assert example.values.dtype == stored and example.columns.tolist() == sorted(WEAK.tolist())
    expected[:, WEAK] = 0
    assert torch.equal(example.scaled_part(), expected)
    assert torch.equal(example.scaled_part(), example.grid.dequantize())


def test_factors_leave_the_weak_columns_alone():
    example, _, _ = layer(torch.float32)
    fixed = example.dequantize() - example.scaled_part()
    alpha = torch.linspace(0.7, 1.2, 12).view(ROWS, 3)
    groups = example.scale_groups(alpha)
    by_column = alpha[:, torch.arange(COLUMNS) // example.scale_group]
    torch.testing.assert_close(groups.dequantize(), fixed + by_column * example.scaled_part())
    rows = example.scale_rows(alpha[:, 0])
    torch.testing.assert_close(rows.dequantize(), fixed + alpha[:, :1] * example.scaled_part())
    for scaled in (groups, rows):
        assert torch.equal(scaled.values, example.values)
        assert torch.equal(scaled.grid.codes, example.grid.codes)


def test_every_bit_counts_weak_columns_have_no_codes():
    example, _, _ = layer()
    codes, scales, values, columns = 3 * ROWS * 16, (16 + 3) * ROWS * 3, 16 * ROWS * 4, 32 * 4
    assert example.stored_bits == codes + scales + values + columns
    tensors = example.tensors()
    assert tensors["codes"].shape == (ROWS, 16)
    widths = {name: 8 * t.element_size() for name, t in tensors.items()} | dict(example.widths)
    assert example.stored_bits == sum(widths[name] * t.numel() for name, t in tensors.items())


@pytest.mark.parametrize("weak", [WEAK, torch.empty(0, dtype=torch.int64)], ids=["weak", "none"])
def test_a_layer_comes_back_from_its_tensors(weak):
    example, grid, _ = layer(weak=weak)
    again = OutlierLinear.from_tensors(example.tensors(), example.metadata())
    assert torch.equal(again.dequantize(), example.dequantize())
    assert torch.equal(again.grid.codes, example.grid.codes)
    assert torch.equal(again.columns, example.columns) and again.metadata() == example.metadata()
    assert again.shape == (ROWS, COLUMNS)
    if not len(weak):
        assert torch.equal(example.dequantize(), grid.dequantize())
        assert example.stored_bits == grid.stored_bits
    away = example.with_record(weak_columns=4).to(torch.device("meta"))
    assert all(t.is_meta for t in (away.columns, away.values, *away.grid.tensors().values()))
    assert away.record == {"weak_columns": 4}


@pytest.mark.parametrize("rounding", [False, True])
def test_gradient_steps_leave_the_weak_columns_alone(rounding):
    example, _, _ = layer(torch.float32)
    form = example.trainable(rounding=rounding)
    assert isinstance(form, Trainable)
    torch.testing.assert_close(form.weight(torch.float32), example.dequantize())
    parameters = [form.scale_change, *([form.code_change] if rounding else [])]
    optimizer = torch.optim.Adam(parameters, lr=0.6)
    (form.weight(torch.float32) ** 2).sum().backward()
    optimizer.step()
    after = form.quantized()
    assert torch.equal(after.values, example.values)
    assert (after.scaled_part()[:, WEAK] == 0).all()
    assert torch.equal(after.grid.codes, example.grid.codes) != rounding
    assert not torch.equal(after.grid.scale, example.grid.scale)
