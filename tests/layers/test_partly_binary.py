import pytest
import torch

from q2n.layers.partly_binary import PartlyBinaryLinear

ROWS, COLUMNS, SIZE = 4, 12, 6


def layer(low_bits=1, mean=True, dtype=torch.float16):
    """Low weights with `low_bits`; 0 for none."""
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(ROWS, COLUMNS, generator=generator) < 0.7
    count = int(low.sum())
    groups = (ROWS, COLUMNS // SIZE)
    codes = torch.randint(0, 2**low_bits, (count,), generator=generator).to(torch.uint8)
    high = torch.randint(0, 256, (low.numel() - count,), generator=generator)
    return PartlyBinaryLinear(
        low=low,
        low_codes=codes if low_bits else None,
        high_codes=high.to(torch.uint8),
        mean=torch.randn(groups, generator=generator).to(dtype) if low_bits and mean else None,
        magnitude=torch.rand(groups, generator=generator).to(dtype) if low_bits else None,
        scale=torch.rand(ROWS, 1, generator=generator).to(dtype) / 100,
        zero=torch.full((ROWS, 1), 120, dtype=torch.uint8),
        low_bits=low_bits,
        high_bits=8,
        group_size=SIZE,
    )


KINDS = [{"low_bits": 1}, {"low_bits": 1, "mean": False}, {"low_bits": 2}, {"low_bits": 0}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_what_the_mask_says(kind):
    given = layer(**kind)
    low_codes = iter([] if given.low_codes is None else given.low_codes.tolist())
    high_codes = iter(given.high_codes.tolist())
    dense = given.dequantize()
    for i in range(ROWS):
        for j in range(COLUMNS):
            if not given.low[i, j]:
                expected = float(given.scale[i]) * (next(high_codes) - 120)
            elif given.magnitude is None:
                expected = 0.0
            else:
                mean = 0.0 if given.mean is None else float(given.mean[i, j // SIZE])
                half, top = float(given.magnitude[i, j // SIZE]), 2**given.low_bits - 1
                expected = mean + half * (2 * next(low_codes) / top - 1)
            assert float(dense[i, j]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_scaled_in_mean_magnitude_and_high_scale(kind):
    given, alpha = layer(**kind, dtype=torch.float32), torch.linspace(-0.5, 1.5, ROWS)
    scaled = given.scale_rows(alpha)
    torch.testing.assert_close(scaled.dequantize(), given.dequantize() * alpha[:, None])
    assert scaled.low_codes is given.low_codes
    assert scaled.high_codes is given.high_codes


def test_every_bit_is_counted_the_mask_included():
    given = layer()
    lows = int(given.low.sum())
    whole = ROWS * COLUMNS
    rows = ROWS * (16 + 8)  # high scale and zero point
    assert given.stored_bits == whole + lows + 8 * (whole - lows) + 2 * 2 * ROWS * 16 + rows
    assert layer(low_bits=0).stored_bits == whole + 8 * (whole - lows) + rows


@pytest.mark.parametrize("kind", KINDS)
def test_its_tensors_rebuild_it(kind):
    given = layer(**kind)
    tensors = given.tensors()
    for name, bits in given.widths.items():
        assert tensors[name].dtype == (torch.bool if name == "low" else torch.uint8)
        assert int(tensors[name].max()) < 2**bits
    again = PartlyBinaryLinear.from_tensors(tensors, given.metadata())
    assert torch.equal(again.dequantize(), given.dequantize())
    assert (again.shape, again.stored_bits) == (given.shape, given.stored_bits)
