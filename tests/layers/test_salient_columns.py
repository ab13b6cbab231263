"""Layers with salient columns: their weight entry by entry, parts, storage, gradient steps."""

import pytest
import torch
from formats.every_layer import layer_of, salient_columns

from q2n.layers.salient_columns import SalientColumnsLinear

ROWS, COLUMNS = 6, 20


@pytest.fixture
def layer() -> SalientColumnsLinear:
    return layer_of(salient_columns, (ROWS, COLUMNS))


def plain(layer) -> torch.Tensor:
    """The weight by its definition."""
    weight = torch.empty(layer.shape, dtype=torch.float64)
    low = high = 0
    for j, salient in enumerate(layer.salient.tolist()):
        for i in range(layer.shape[0]):
            mean, size, scale = (float(x[i]) for x in (layer.mean, layer.magnitude, layer.scale))
            if salient:
                weight[i, j] = scale * (int(layer.high_codes[i, high]) - int(layer.zero[i]))
            else:
                sign = 1 if layer.low_codes[i, low] else -1
                weight[i, j] = float(layer.factor[low]) * (mean + size * sign)
        low, high = low + (not salient), high + salient
    return weight


def test_dequantize_is_the_definition(layer):
    torch.testing.assert_close(layer.dequantize().double(), plain(layer), rtol=1e-6, atol=1e-6)


def test_scale_rows_multiplies_rows(layer):
    alpha = torch.linspace(0.5, 2, ROWS)
    actual = layer.scale_rows(alpha).dequantize()
    # three values are rounded to float16, and mean and magnitude may cancel
    torch.testing.assert_close(actual, layer.dequantize() * alpha[:, None], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("rows", [slice(0, 6), slice(2, 5)])
@pytest.mark.parametrize("columns", [slice(0, 20), slice(3, 11), slice(10, 20)])
def test_a_part_is_the_part_of_the_weight(layer, rows, columns):
    part = layer.part(rows, columns)
    assert torch.equal(part.dequantize(), layer.dequantize()[rows, columns])


def test_tensors_and_metadata_rebuild_it(layer):
    again = SalientColumnsLinear.from_tensors(layer.tensors(), layer.metadata())
    assert torch.equal(again.dequantize(), layer.dequantize()) and again.shape == (ROWS, COLUMNS)


def test_every_stored_bit_is_counted(layer):
    high = int(layer.salient.sum())
    low = COLUMNS - high
    codes, factors = ROWS * (low + 4 * high), 16 * (3 * ROWS + low)
    assert layer.stored_bits == COLUMNS + codes + factors + 4 * ROWS


def test_wrong_counts_are_found(layer):
    assert SalientColumnsLinear.wrong_values(layer.shape, layer.tensors().__getitem__) is None
    fewer = {**layer.tensors(), "salient": torch.zeros(COLUMNS, dtype=torch.bool)}
    message = SalientColumnsLinear.wrong_values(layer.shape, fewer.__getitem__)
    assert message is not None and "0 columns are salient" in message
    sizes = {"in": COLUMNS, "low": 3, "high": 4}
    assert not SalientColumnsLinear.fits(sizes, layer.metadata(), set())


def test_gradient_steps_reach_every_value(layer):
    form = layer.trainable(rounding=False)
    assert torch.equal(form.weight(torch.float32), layer.dequantize())
    above = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    (form.weight(torch.float32) * above).sum().backward()
    step = 1e-2
    for place in (0, ROWS + 1, 2 * ROWS + 2, 3 * ROWS + 3):  # the weight is linear in each alone
        with torch.no_grad():
            form.scale_change[place] = step
            change = ((form.weight(torch.float32) - layer.dequantize()) * above).sum() / step
            form.scale_change[place] = 0
        torch.testing.assert_close(form.scale_change.grad[place], change, rtol=1e-3, atol=1e-3)
    form.scale_change.data += 0.1
    torch.testing.assert_close(
        form.quantized().dequantize(), form.weight(torch.float32), rtol=2e-3, atol=2e-3
    )
