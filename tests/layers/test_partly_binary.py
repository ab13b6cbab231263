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
    example = layer(**kind)
    low_codes = iter([] if example.low_codes is None else example.low_codes.tolist())
    high_codes = iter(example.high_codes.tolist())
    dense = example.dequantize()
    for i in range(ROWS):
        for j in range(COLUMNS):
            if not example.low[i, j]:
                expected = float(example.scale[i]) * (next(high_codes) - 120)
            elif example.magnitude is None:
                expected = 0.0
            else:
                mean = 0.0 if example.mean is None else float(example.mean[i, j // SIZE])
                half, top = float(example.magnitude[i, j // SIZE]), 2**example.low_bits - 1
                expected = mean + half * (2 * next(low_codes) / top - 1)
            assert float(dense[i, j]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_scale_mean_magnitude_and_high_scale(kind):
    example, alpha = layer(**kind, dtype=torch.float32), torch.linspace(-0.5, 1.5, ROWS)
    scaled = example.scale_rows(alpha)
    torch.testing.assert_close(scaled.dequantize(), example.dequantize() * alpha[:, None])
    assert scaled.low_codes is example.low_codes
    assert scaled.high_codes is example.high_codes


def test_every_bit_is_counted_the_mask_included():
    example = layer()
    lows = int(example.low.sum())
    whole = ROWS * COLUMNS
    rows = ROWS * (16 + 8)  # high scale and zero point
    assert example.stored_bits == whole + lows + 8 * (whole - lows) + 2 * 2 * ROWS * 16 + rows
    assert layer(low_bits=0).stored_bits == whole + 8 * (whole - lows) + rows


@pytest.mark.parametrize("kind", KINDS)
def test_its_tensors_rebuild_it(kind):
    example = layer(**kind)
    tensors = example.tensors()
    for name, bits in example.widths.items():
        assert tensors[name].dtype == (torch.bool if name == "low" else torch.uint8)
        assert int(tensors[name].max()) < 2**bits
    again = PartlyBinaryLinear.from_tensors(tensors, example.metadata())
    assert torch.equal(again.dequantize(), example.dequantize())
    assert (again.shape, again.stored_bits) == (example.shape, example.stored_bits)
