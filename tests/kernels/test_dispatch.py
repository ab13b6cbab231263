"""All implementations of every operation on the same cases, and which of them is chosen."""

import os
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from q2n.block_types import BLOCK_TYPES
from q2n.errors import InputError
from q2n.grids.granularity import PerGroup
from q2n.grids.uniform import UniformGrid
from q2n.kernels import dispatch
from q2n.kernels.column_rounding import round_columns_numba, round_columns_reference
from q2n.kernels.column_sweep import sweep
from q2n.kernels.rounding_rules import BlockRule, CodebookRule, SplitRule, UniformRule
from q2n.kernels.trellis_search import TrellisRule, round_to_trellis_numba
from q2n.linalg import trellis_code
from q2n.linalg.factor import feedback

ROUNDING_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}
"""Some tens of roundings of numbers near 1. On a CPU the errors are equal."""
SUM_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}
"""Relative; sums of 150 positive terms at most in another order, products by a reciprocal."""
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's kernels run on a CPU (test_triton_operations.py)."""


def implementations(operation):
    """Everything that may run in place of the reference on a CPU, with its type of device."""
    pairs = [("cuda", operation.reference), *operation.fast.items()]
    if INTERPRETED:
        pairs = [("cpu", function) for device, function in pairs[1:] if device == "cuda"]
    marks = {"cuda": [pytest.mark.gpu]}
    return pytest.mark.parametrize(
        ("implementation", "device"),
        [
            pytest.param(function, device, id=function.__name__, marks=marks.get(device, []))
            for device, function in pairs
        ],
    )


def mapped(function, value):
    """An argument with all its tensors mapped; a rule is a tuple of them."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, tuple):
        return type(value)(*(mapped(function, part) for part in value))
    return value


def compared(operation, implementation, device, arguments):
    """Results of the reference on a CPU and of the implementation; their arguments stay as they
    are."""
    copies = [mapped(lambda t: t.clone().to(device), value) for value in arguments]
    before = [mapped(torch.clone, value) for value in arguments]
    expected, result = operation.reference(*arguments), implementation(*copies)
    for value, copy, original in zip(arguments, copies, before, strict=True):
        torch.testing.assert_close(value, original, rtol=0, atol=0)
        torch.testing.assert_close(copy, original, rtol=0, atol=0, check_device=False)
    if isinstance(result, tuple):
        return expected, tuple(part.cpu() for part in result)
    return expected, result.cpu()


def gaussian(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def block(columns, rows, dtype):
    """Target, weight and feedback of a block; one output row is zero if there are several."""
    target, weight = gaussian(2, columns, rows, dtype=dtype)
    if rows > 1:
        target[:, 1] = weight[:, 1] = 0
    x = gaussian(2 * columns + 1, columns, dtype=dtype, seed=1)
    return target, weight, feedback(x.T @ x, 0.01).matrix


def uniform_rule(columns, rows, dtype, bits):
    """Groups of 8 columns, the last one shorter."""
    grid = UniformGrid(bits=bits, granularity=PerGroup(8, ragged=True))
    scale, zero = grid.fit(block(columns, rows, dtype)[1].T, dtype, "layer")
    group = torch.arange(columns) // 8
    return UniformRule(scale.T.contiguous(), zero.T.contiguous(), group, grid.top)


def codebook_rule(columns, rows, dtype, bits):
    return CodebookRule(gaussian(2**bits, rows, dtype=dtype, seed=3).sort(0).values)


def split_rule(columns, rows, dtype, bits):
    step = gaussian(-(-columns // 8), rows, dtype=dtype, seed=4).abs() + 0.1
    return SplitRule(
        gaussian(columns, rows, seed=5) < 0.8,
        torch.arange(columns) // 8,
        -step,
        step,
        3,
        torch.full((1, rows), -3.0, dtype=dtype),
        torch.full((1, rows), 6 / (2**bits - 1), dtype=dtype),
        2**bits - 1,
    )


def block_rule(columns, rows, dtype, bits):
    """Blocks of 8 columns, one with a step of 0; even levels or, at 4 bits, uneven ones."""
    step = gaussian(-(-columns // 8), rows, dtype=dtype, seed=6)
    step[0, -1] = 0
    levels = torch.arange(2**bits, dtype=dtype) - 2 ** (bits - 1)
    midpoints = levels[:0]
    if bits == 4:
        levels = gaussian(2**bits, dtype=dtype, seed=7).sort().values
        midpoints = (levels[1:] + levels[:-1]) / 2
    inverse = torch.where(step == 0, 0, 1 / step)
    minimum = gaussian(*step.shape, dtype=dtype, seed=8)
    return BlockRule(step, inverse, minimum, torch.arange(columns) // 8, levels, midpoints)


def assert_rounded_alike(expected, result, dtype):
    assert torch.equal(result[0], expected[0])
    assert result[1].dtype == dtype
    tolerance = ROUNDING_TOLERANCE[dtype]
    torch.testing.assert_close(result[1], expected[1], rtol=0, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (16, 37), (21, 64), (40, 130), (150, 3)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("make_rule", [uniform_rule, block_rule, codebook_rule, split_rule])
@implementations(dispatch.ROUNDING[UniformRule])
def test_columns_round_to_equal_codes(implementation, device, make_rule, bits, shape, dtype):
    """Shapes: one row, whole tiles and parts of one, whole groups and a shorter last one, and more
    columns than a program of Triton's takes at once."""
    rule = make_rule(*shape, dtype, bits)
    operation = dispatch.ROUNDING[type(rule)]
    arguments = (*block(*shape, dtype), rule)
    assert_rounded_alike(*compared(operation, implementation, device, arguments), dtype)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 5), (3, 37), (5, 161), (4, 330)])
@pytest.mark.parametrize("bits", [2, 3, 4])
@implementations(dispatch.ROUNDING[TrellisRule])
def test_columns_round_to_equal_trellis_codes(implementation, device, bits, shape, dtype):
    """Shapes: one segment, as short as can be and longer, and several of unequal length."""
    operation = dispatch.ROUNDING[TrellisRule]
    rule = TrellisRule(trellis_code.values(bits).to(dtype), bits)
    arguments = (*block(*shape, dtype), rule)
    assert_rounded_alike(*compared(operation, implementation, device, arguments), dtype)


@pytest.mark.parametrize("shape", [(1, 3), (6, 63), (2, 64), (5, 130)])
@pytest.mark.parametrize(("bits", "zeros"), [(2, range(4)), (3, range(8)), (4, [8]), (8, [128])])
@implementations(dispatch.scale_zero_search)
def test_scale_zero_search_finds_the_same_pairs(implementation, device, bits, zeros, shape):
    """Shapes: one row, a part of a span, one span, and a last span that is shorter. A single weight
    would lie on levels of several pairs."""
    values = 3 * gaussian(*shape)
    if len(values) > 1:
        values[1] = 0
    scales = (torch.rand(len(values), 1, generator=torch.Generator().manual_seed(1)) + 1) / 40
    arguments = (values, scales * torch.arange(1, 41), torch.tensor(zeros), 2**bits - 1)
    expected, result = compared(dispatch.scale_zero_search, implementation, device, arguments)
    assert torch.equal(result[0], expected[0]) and torch.equal(result[1], expected[1])


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 33), (7, 3, 16), (12, 1, 32), (3, 2, 150)])
@pytest.mark.parametrize("bits", [2, 3, 8])
@implementations(dispatch.weighted_error)
def test_weighted_errors_agree(implementation, device, bits, shape, dtype):
    values = gaussian(*shape, dtype=dtype)
    if len(values) > 1:
        values[1] = 0
    omega = 10 ** gaussian(*shape[1:], dtype=dtype, seed=1)
    scale, zero = UniformGrid(bits=bits).fit_groups(values, dtype, "layer")
    # not quite the full range, so that some weights are clamped and none lies at either end
    arguments = (values, omega, 0.9 * scale, zero.to(dtype), 2**bits - 1)
    expected, result = compared(dispatch.weighted_error, implementation, device, arguments)
    rtol = SUM_TOLERANCE[dtype]
    torch.testing.assert_close(result, expected, rtol=rtol, atol=0)
    if len(values) > 1:
        assert not result[1].any()


@pytest.mark.parametrize("kind", ["q2_0", "q4_k", "iq4_nl", "q8_0"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 16), (3, 32), (2, 33), (3, 150)])
@implementations(dispatch.level_moments)
def test_level_moments_agree(implementation, device, shape, kind):
    """One block is zero, and one step of another."""
    values, omega = gaussian(*shape), gaussian(*shape, seed=1).exp()
    if len(values) > 1:
        values[1] = 0
    levels = torch.tensor(BLOCK_TYPES[kind].levels, dtype=torch.float32)
    step = gaussian(shape[0], 4, seed=2) / levels.abs().max()
    step[0, 1] = 0
    arguments = (values, omega, step, gaussian(shape[0], 4, seed=3), levels)
    expected, result = compared(dispatch.level_moments, implementation, device, arguments)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(0,), (1,), (31,), (32,), (8192,), (20001,), (3, 0), (1, 45), (7, 96), (2, 3, 8200)]
)
@pytest.mark.parametrize("bits", range(1, 9))
@implementations(dispatch.unpack)
def test_unpacked_codes_are_equal(implementation, device, bits, shape):
    """Shapes: nothing, one word and parts of one, one tile and parts of one, many rows."""
    words = (*shape[:-1], -(-shape[-1] * bits // 32))
    random = torch.Generator().manual_seed(bits)
    stream = torch.randint(-(2**31), 2**31, words, generator=random).to(torch.int32)
    arguments = (stream, bits, shape[-1])
    expected, result = compared(dispatch.unpack, implementation, device, arguments)
    assert expected.shape == shape and torch.equal(result, expected)


@pytest.mark.parametrize("implementation", [round_columns_reference, round_columns_numba])
def test_views_round_like_copies(implementation):
    """A block of a larger matrix, and a weight that is another one transposed."""
    target, weight, matrix = block(16, 37, torch.float32)
    rule = uniform_rule(16, 37, torch.float32, 3)
    views = (target.T.contiguous().T, weight.T.contiguous().T, matrix.repeat(2, 2)[:16, :16])
    assert not any(view.is_contiguous() for view in views)
    expected = implementation(target, weight, matrix, rule)
    result = implementation(*views, rule)
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


def test_rows_of_words_may_be_a_view():
    words = gaussian(6, 9).view(torch.int32)
    view = words.T.contiguous().T
    assert torch.equal(dispatch.unpack(view, 3, 90), dispatch.unpack(words, 3, 90))


@pytest.mark.parametrize(
    ("make_rule", "bits"),
    [(uniform_rule, 3), (block_rule, 4), (block_rule, 2), (codebook_rule, 2), (split_rule, 8)],
)
def test_a_sweep_by_references_is_the_same(monkeypatch, make_rule, bits):
    weight, matrix = block(40, 37, torch.float64)[1:]
    rule = make_rule(40, 37, torch.float64, bits)
    fast = sweep(weight, matrix, rule, block_size=16)
    monkeypatch.setenv("Q2N_KERNELS", "reference")
    slow = sweep(weight, matrix, rule, block_size=16)
    assert_rounded_alike((slow.codes, slow.error), (fast.codes, fast.error), torch.float64)


def test_the_device_chooses_the_implementation():
    for operation in (dispatch.scale_zero_search, dispatch.weighted_error, dispatch.unpack):
        assert operation.implementation(torch.device("cpu")) is operation.fast["cpu"]
        assert operation.implementation(torch.device("xpu")) is operation.reference


@pytest.mark.parametrize(
    ("rule", "implementation"),
    [
        (UniformRule, round_columns_numba),
        (BlockRule, round_columns_numba),
        (CodebookRule, round_columns_numba),
        (SplitRule, round_columns_numba),
        (TrellisRule, round_to_trellis_numba),
    ],
)
def test_the_rule_chooses_the_rounding(rule, implementation):
    operation = dispatch.ROUNDING[rule]
    assert operation.implementation(torch.device("cpu")) is implementation
    assert operation.reference is round_columns_reference


def test_a_rule_without_a_kernel_is_rounded():
    class OwnRule(CodebookRule):
        pass

    rule = codebook_rule(16, 37, torch.float32, 3)
    expected = dispatch.round_columns(*block(16, 37, torch.float32), rule)
    result = dispatch.round_columns(*block(16, 37, torch.float32), OwnRule(*rule))
    assert_rounded_alike(expected, result, torch.float32)


def test_a_kernel_runs_on_the_gpu_of_its_tensors(monkeypatch):
    """Triton starts it on the current one, which is the first unless somebody says otherwise."""
    current = [torch.device("cuda:0")]

    @contextmanager
    def become_current(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", become_current)
    operation = dispatch.Operation(lambda x: None, {"cuda": lambda x: current[-1]})
    with FakeTensorMode():  # a tensor of a GPU that is not there
        tensor = torch.empty(3, device="cuda:1")
    assert operation(tensor) == torch.device("cuda:1")
    assert current == [torch.device("cuda:0")]


def test_the_environment_forces_references(monkeypatch):
    monkeypatch.setenv("Q2N_KERNELS", "reference")
    operation = dispatch.unpack
    assert operation.implementation(torch.device("cpu")) is operation.reference


def test_an_unknown_choice_of_kernels_is_refused(monkeypatch):
    monkeypatch.setenv("Q2N_KERNELS", "fast")
    with pytest.raises(InputError, match="Q2N_KERNELS must be 'reference' or unset, got 'fast'"):
        dispatch.unpack(torch.zeros(3, dtype=torch.int32), 3, 8)
