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
def test_weak_columns_are_their_values_and_the_others_lie_on_the_grid(dtype):
    found, grid, weight = layer(dtype)
    stored = torch.float16 if dtype == torch.float32 else dtype
    expected = grid.dequantize()
    expected[:, WEAK] = weight[:, WEAK].to(stored).float()
    assert torch.equal(found.dequantize(), expected)
    assert found.values.dtype == stored and found.columns.tolist() == sorted(WEAK.tolist())
    expected[:, WEAK] = 0
    assert torch.equal(found.scaled_part(), expected)
    assert torch.equal(found.scaled_part(), found.grid.dequantize())


def test_factors_leave_the_weak_columns_alone():
    found, _, _ = layer(torch.float32)
    fixed = found.dequantize() - found.scaled_part()
    alpha = torch.linspace(0.7, 1.2, 12).view(ROWS, 3)
    groups = found.scale_groups(alpha)
    by_column = alpha[:, torch.arange(COLUMNS) // found.scale_group]
    torch.testing.assert_close(groups.dequantize(), fixed + by_column * found.scaled_part())
    rows = found.scale_rows(alpha[:, 0])
    torch.testing.assert_close(rows.dequantize(), fixed + alpha[:, :1] * found.scaled_part())
    for scaled in (groups, rows):
        assert torch.equal(scaled.values, found.values)
        assert torch.equal(scaled.grid.codes, found.grid.codes)


def test_every_bit_is_counted_and_no_code_for_a_weak_column():
    found, _, _ = layer()
    codes, scales, values, columns = 3 * ROWS * 16, (16 + 3) * ROWS * 3, 16 * ROWS * 4, 32 * 4
    assert found.stored_bits == codes + scales + values + columns
    tensors = found.tensors()
    assert tensors["codes"].shape == (ROWS, 16)
    widths = {name: 8 * t.element_size() for name, t in tensors.items()} | dict(found.widths)
    assert found.stored_bits == sum(widths[name] * t.numel() for name, t in tensors.items())


@pytest.mark.parametrize("weak", [WEAK, torch.empty(0, dtype=torch.int64)], ids=["weak", "none"])
def test_a_layer_comes_back_from_its_tensors(weak):
    found, grid, _ = layer(weak=weak)
    again = OutlierLinear.from_tensors(found.tensors(), found.metadata())
    assert torch.equal(again.dequantize(), found.dequantize())
    assert torch.equal(again.grid.codes, found.grid.codes)
    assert torch.equal(again.columns, found.columns) and again.metadata() == found.metadata()
    assert again.shape == (ROWS, COLUMNS)
    if not len(weak):
        assert torch.equal(found.dequantize(), grid.dequantize())
        assert found.stored_bits == grid.stored_bits
    away = found.with_record(weak_columns=4).to(torch.device("meta"))
    assert all(t.is_meta for t in (away.columns, away.values, *away.grid.tensors().values()))
    assert away.record == {"weak_columns": 4}


@pytest.mark.parametrize("rounding", [False, True])
def test_gradient_steps_reach_the_grid_and_not_the_weak_columns(rounding):
    found, _, _ = layer(torch.float32)
    form = found.trainable(rounding=rounding)
    assert isinstance(form, Trainable)
    torch.testing.assert_close(form.weight(torch.float32), found.dequantize())
    parameters = [form.scale_change, *([form.code_change] if rounding else [])]
    optimizer = torch.optim.Adam(parameters, lr=0.6)
    (form.weight(torch.float32) ** 2).sum().backward()
    optimizer.step()
    after = form.quantized()
    assert torch.equal(after.values, found.values)
    assert (after.scaled_part()[:, WEAK] == 0).all()
    assert torch.equal(after.grid.codes, found.grid.codes) != rounding
    assert not torch.equal(after.grid.scale, found.grid.scale)
