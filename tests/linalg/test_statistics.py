import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from q2n.errors import InputError, NumericalError
from q2n.linalg.required_statistics import RequiredStatistics, bytes_of_sums
from q2n.linalg.statistics import InputStatistics

# Sums of t products in float32, compared with float64: a few eps * sqrt(t) of the largest
# term; eps = 1.2e-7 and t < 200 give 2e-6, and 1e-5 leaves room for the order of summation.
FLOAT32_SUMS = 1e-5


def gathered(parts, required=RequiredStatistics.GRAM, width=13):
    statistics = InputStatistics(width, required)
    for part in parts:
        statistics.update(part)
    return statistics


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(0, 2**31))
def test_gram_does_not_depend_on_batching_or_merging(first, second, width, seed):
    x = torch.randn(first + second, width, generator=torch.Generator().manual_seed(seed))
    expected = x.double().T @ x.double()
    whole = gathered([x], width=width)
    merged = gathered([x[:first]], width=width) + gathered([x[first:]], width=width)
    batched = gathered([x[:first].unsqueeze(0), x[first:].unsqueeze(1)], width=width)
    scale = float(expected.abs().max())
    for statistics in (whole, merged, batched):
        assert statistics.tokens == first + second
        assert (statistics.gram.double() - expected).abs().max() <= FLOAT32_SUMS * scale
        assert torch.equal(statistics.gram, statistics.gram.T)


@pytest.mark.parametrize("stride", [1, 3])
def test_batches_and_their_order_change_no_bit(stride):
    """The middle of a window is 1e3 times as large as the others: float32 sums would differ."""
    required = ~RequiredStatistics.NONE
    x = torch.randn(12, 9, 13, generator=torch.Generator().manual_seed(0))
    x[5] *= 1e3
    found = []
    for parts in (x.split(1), x.split(4), x.split(6), x.split(2)[::-1]):
        statistics = InputStatistics(13, required, cross_stride=stride)
        for part in parts:
            statistics.update(part, 1.1 * part)
        found.append(statistics)
    for other in found[1:]:
        for name in ("gram", "residual", "position_gram"):
            assert torch.equal(getattr(other, name), getattr(found[0], name))


def test_what_was_read_takes_no_more_tokens():
    x = torch.randn(40, 13)
    statistics, other = gathered([x]), gathered([x])
    assert torch.equal(statistics.gram, statistics.gram)
    with pytest.raises(AssertionError, match="no more tokens"):
        statistics.update(x)
    with pytest.raises(AssertionError, match="no more tokens"):
        other + statistics


def test_a_read_moment_frees_its_sum():
    statistics = InputStatistics(13, RequiredStatistics.GRAM | RequiredStatistics.CROSS)
    statistics.update(torch.randn(40, 13), torch.randn(40, 13))
    held = [weakref.ref(total) for total in statistics.sums()]
    _ = statistics.gram, statistics.residual
    assert [total() for total in held] == [None, None]


def test_bytes_are_those_of_all_sums():
    moments = RequiredStatistics.GRAM | RequiredStatistics.CROSS
    for required in (RequiredStatistics.GRAM, moments, moments | RequiredStatistics.FOLDS):
        sums = InputStatistics(50, required).sums()
        assert bytes_of_sums(required, 50) == sum(total.nbytes for total in sums)


def test_half_precision_inputs_are_summed_in_float32():
    x = torch.randn(300, 13).bfloat16()
    expected = x.double().T @ x.double()
    gram = gathered([x]).gram
    assert gram.dtype == torch.float32
    assert (gram.double() - expected).abs().max() <= FLOAT32_SUMS * float(expected.abs().max())


def test_cross_moment_has_full_precision_inputs_in_rows():
    x, full = torch.randn(2, 20, 5), torch.randn(2, 20, 5)
    statistics = InputStatistics(5, RequiredStatistics.GRAM | RequiredStatistics.CROSS)
    statistics.update(x, full)
    expected = torch.einsum("bti,btj->ij", full, x)
    with pytest.raises(InputError, match="x_full"):
        InputStatistics(5, statistics.required).update(x)
    torch.testing.assert_close(statistics.cross, expected, rtol=0, atol=1e-5 * 40)
    torch.testing.assert_close(statistics.residual, statistics.cross - statistics.gram)


@pytest.mark.parametrize("stride", [2, 3, 8])
def test_strided_residual_scales_up_all_but_first_token(stride):
    x, full = torch.randn(3, 8, 5), torch.randn(3, 8, 5)
    kept = list(range(1, 8, stride))
    expected = sum(
        7 / len(kept) * torch.outer(full[b, t] - x[b, t], x[b, t]) for b in range(3) for t in kept
    )
    expected = expected + sum(torch.outer(full[b, 0] - x[b, 0], x[b, 0]) for b in range(3))
    statistics = InputStatistics(
        5, RequiredStatistics.GRAM | RequiredStatistics.CROSS, cross_stride=stride
    )
    statistics.update(x, full)
    torch.testing.assert_close(statistics.residual, expected, rtol=0, atol=1e-5 * 40)
    torch.testing.assert_close(statistics.cross, statistics.gram + expected, rtol=0, atol=1e-5 * 40)
    parts = [
        InputStatistics(5, RequiredStatistics.GRAM | RequiredStatistics.CROSS, cross_stride=stride)
        for _ in range(2)
    ]
    parts[0].update(x[2:], full[2:])
    parts[1].update(x[:2], full[:2])
    torch.testing.assert_close((parts[0] + parts[1]).residual, expected, rtol=0, atol=1e-5 * 40)


def test_stride_changes_neither_constant_sequences_nor_loose_tokens():
    x, full = torch.randn(1, 1, 5).expand(2, 9, 5), torch.randn(1, 1, 5).expand(2, 9, 5)
    loose, loose_full = torch.randn(7, 5), torch.randn(7, 5)
    found = []
    for stride in (1, 3):
        statistics = InputStatistics(
            5, RequiredStatistics.GRAM | RequiredStatistics.CROSS, cross_stride=stride
        )
        statistics.update(x, full)
        statistics.update(x[:, :1], full[:, :1])
        statistics.update(loose, loose_full)
        found.append(statistics)
    with pytest.raises(InputError, match="stride 1 .* stride 3"):
        found[0] + found[1]
    torch.testing.assert_close(found[0].residual, found[1].residual)


def test_position_gram_is_gram_of_the_sequence_mean():
    x = torch.randn(6, 11, 5)
    statistics = gathered([x[:2]], RequiredStatistics.POSITIONS, 5) + gathered(
        [x[2:]], RequiredStatistics.POSITIONS, 5
    )
    mean = x.double().mean(0)
    torch.testing.assert_close(
        statistics.position_gram.double(), mean.T @ mean, rtol=1e-4, atol=1e-5
    )


def test_positions_refuse_what_has_no_positions():
    statistics = InputStatistics(5, RequiredStatistics.POSITIONS)
    with pytest.raises(InputError, match="sequences"):
        statistics.update(torch.randn(10, 5))
    statistics.update(torch.randn(1, 10, 5))
    with pytest.raises(InputError, match="one length, got 9 after 10"):
        statistics.update(torch.randn(1, 9, 5))


def test_what_was_not_gathered_is_refused_by_name():
    with pytest.raises(InputError, match="GRAM"):
        _ = InputStatistics(5, RequiredStatistics.POSITIONS).gram
    with pytest.raises(InputError, match="width 5"):
        InputStatistics(5, RequiredStatistics.GRAM).update(torch.randn(3, 4))
    with pytest.raises(InputError, match="width 5"):
        _ = InputStatistics(5, RequiredStatistics.GRAM) + InputStatistics(
            4, RequiredStatistics.GRAM
        )


def test_derived_results_are_computed_once():
    statistics = gathered([torch.randn(20, 13)])
    calls = []
    for _ in range(3):
        statistics.once("trace", lambda: calls.append(1) or float(statistics.gram.trace()))
    assert len(calls) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_activation_names_the_layer(bad):
    x = torch.randn(20, 13)
    x[7, 3] = bad
    with pytest.raises(NumericalError, match=r"layers\.3\.up.*not finite"):
        gathered([x]).require_finite("layers.3.up")
    with pytest.raises(NumericalError, match="no calibration token"):
        InputStatistics(13, RequiredStatistics.GRAM).require_finite("layers.3.up")
    gathered([torch.randn(20, 13)]).require_finite("layers.3.up")
