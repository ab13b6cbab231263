import numpy as np
import pytest
import torch
from oracles import trellis as oracle

from q2n.layers.levels import TrellisLinear
from q2n.linalg import trellis_code
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods.ldlq import LDLQ

WIDTHS = pytest.mark.parametrize("bits", [2, 3, 4])


@WIDTHS
def test_no_choice_is_between_similar_values(bits):
    """The states that may follow, and those that may have gone before, have one value each in
    every one of the 2^bits equally likely parts of the Gaussian."""
    base, values = 2**bits, trellis_code.values(bits).double()
    states = len(values)
    middles = torch.special.ndtri((torch.arange(states).double() + 0.5) / states)
    torch.testing.assert_close(values.sort().values, middles, rtol=0, atol=1e-6)
    part = (torch.special.ndtr(values) * base).long()
    every = torch.arange(base).expand(states // base, base)
    assert torch.equal(part.view(base, -1).T.sort(1).values, every)  # the newest code differs
    assert torch.equal(part.view(-1, base).sort(1).values, every)  # the oldest one


EXPECTED = {
    2: [-1.10358, -0.273559, 0.148333, 2.203097],
    3: [0.318317, 0.341581, 0.675643, 1.257037],
    4: [0.849232, 1.13332, 1.226606, 3.233998],
}


def test_the_values_stay_what_they_are():
    """Checkpoints hold codes alone: with other values they would be rubbish."""
    for bits, expected in EXPECTED.items():
        torch.testing.assert_close(trellis_code.values(bits)[:4], torch.tensor(expected))


@WIDTHS
@pytest.mark.parametrize("rows", [5, 160, 161, 500])
def test_layer_equals_codes_decoded_one_by_one(bits, rows):
    codes = torch.randint(2**bits, (rows, 3), generator=torch.Generator().manual_seed(1))
    codes = codes.to(torch.uint8)
    ends = trellis_code.borders(rows)
    assert ends[0] == 0 and ends[-1] == rows
    assert max(np.diff(ends)) <= 160 and max(np.diff(ends)) - min(np.diff(ends)) <= 1
    values, digits = trellis_code.values(bits).numpy(), trellis_code.DIGITS[bits]
    expected = np.empty((rows, 3), np.float32)
    for low, high in zip(ends, ends[1:], strict=False):
        for column in range(3):
            part = codes[low:high, column]
            expected[low:high, column] = oracle.decode(part, values, 2**bits, digits)
    alpha = torch.linspace(0.5, 2, rows)
    layer = TrellisLinear(codes=codes, scale=torch.tensor([2.0]), bits=bits)
    np.testing.assert_array_equal(layer.dequantize(), 2 * expected)
    scaled = layer.scale_rows(alpha).dequantize()
    torch.testing.assert_close(scaled, 2 * alpha[:, None] * torch.from_numpy(expected))
    assert layer.stored_bits == bits * codes.numel() + 32


@pytest.mark.parametrize(("bits", "error"), [(2, 0.0705), (3, 0.0184), (4, 0.0048)])
def test_error_on_gaussian_weights_is_as_documented(bits, error):
    """150 000 weights: the spread of their mean error is below 1 %."""
    weight = torch.randn(1500, 100, generator=torch.Generator().manual_seed(2))
    statistics = InputStatistics(100, RequiredStatistics.GRAM)
    statistics.update(torch.eye(100))
    problem = LayerProblem(name="up", weight=weight, statistics=statistics)
    quantized = {
        grid: LDLQ(bits=bits, grid=grid, descent_passes=0).quantize(problem).dequantize()
        for grid in ("trellis", "lloyd-max")
    }
    errors = {grid: float((weight - q).square().mean()) for grid, q in quantized.items()}
    assert errors["trellis"] == pytest.approx(error, rel=0.02)
    assert 2.0 ** (-2 * bits) < errors["trellis"] < 0.76 * errors["lloyd-max"]
