import dataclasses

import numpy as np
import pytest
import torch
from oracles import owq as oracle
from two_inputs import two_inputs

from q2n.config.presets import RELEASED_NULLSPACE
from q2n.errors import InputError, NumericalError
from q2n.layers.outliers import OutlierLinear
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods import METHODS
from q2n.methods.gptq import GPTQ
from q2n.methods.owq import OWQ
from q2n.methods.rtn import RTN
from q2n.wrappers.nullspace import NullSpace
from q2n.wrappers.output_scales import OutputScales

ROWS, COLUMNS, TOKENS = 7, 40, 240


def problem(dtype=torch.float64, name="h.0.self_attn.q", seed=0, **options):
    """A layer with a few loud input channels. In float64 where codes are compared, so that the
    two ways of computing do not round one weight differently and then drift apart."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, x_full = two_inputs(normal, TOKENS, COLUMNS, 0.5, 0.3)
    loud = torch.ones(COLUMNS, dtype=torch.float64)
    loud[[5, 22, 31]] = 4.0
    x, x_full = x * loud, x_full * loud
    weight = normal(ROWS, COLUMNS)
    statistics = InputStatistics(
        COLUMNS,
        RequiredStatistics.GRAM | RequiredStatistics.CROSS | RequiredStatistics.FOLDS,
        dtype=dtype,
    )
    statistics.update(x.unflatten(0, (4, -1)), x_full.unflatten(0, (4, -1)))
    given = LayerProblem(name=name, weight=weight.to(dtype), statistics=statistics, **options)
    return given, x, x_full


def output_error(given, layer):
    error = given.weight - layer.dequantize().to(given.weight)
    return float(((error @ given.statistics.gram) * error).sum())


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("bits", "size", "count"), [(2, -1, 6), (3, -1, 1), (3, 16, 5), (2, -1, 0)]
)
def test_owq_is_its_definition(bits, size, count, symmetric, act_order):
    given, x, _ = problem()
    options = {"bits": bits, "symmetric": symmetric, "act_order": act_order}
    method = OWQ(target_rank=count, group_size=size, ragged_groups=True, block_size=11, **options)
    layer = method.quantize(given)
    expected, weak = oracle.owq(
        given.weight.numpy(),
        x.numpy(),
        count=count,
        size=COLUMNS if size == -1 else size,
        damping=0.01,
        **options,
    )
    assert layer.columns.tolist() == sorted(weak)
    # float16 values; `dequantize` is float32 elsewhere, a few eps of the largest weight
    dense = layer.dequantize().double().numpy()
    np.testing.assert_allclose(dense[:, weak], expected[:, weak], rtol=2**-11, atol=1e-6)
    rest = np.setdiff1d(np.arange(COLUMNS), weak)
    np.testing.assert_allclose(dense[:, rest], expected[:, rest], rtol=0, atol=4e-6)
    assert layer.record["weak_columns"] == count
    assert layer.record["weight_bits"] == pytest.approx(bits + (16 - bits) * count / COLUMNS)


@pytest.mark.parametrize("size", [-1, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("clip", ["minmax", "mse", "scale_zero"])
def test_without_outliers_it_is_gptq(clip, symmetric, size):
    given, _, _ = problem(torch.float32)
    options = {"bits": 3, "group_size": size, "symmetric": symmetric, "act_order": False}
    layer = OWQ(clip=clip, **options).quantize(given)
    gptq = GPTQ(clip=clip, **options).quantize(given)
    assert torch.equal(layer.grid.codes, gptq.codes) and torch.equal(layer.grid.zero, gptq.zero)
    assert torch.equal(layer.dequantize(), gptq.dequantize())
    assert layer.stored_bits == gptq.stored_bits


def test_weak_columns_compensate_the_error_of_others():
    """At no damping they are the least-squares solution, given the others."""
    given, x, _ = problem()
    layer = OWQ(bits=2, target_rank=5, damping=0.0).quantize(given)
    weak = layer.columns.long()
    left = x @ (given.weight - layer.scaled_part().double()).T
    expected = torch.linalg.lstsq(x[:, weak], left).solution.T
    torch.testing.assert_close(layer.values.double(), expected, rtol=2**-11, atol=1e-5)
    assert (expected - given.weight[:, weak]).abs().max() > 0.05


def test_more_outliers_leave_less_error():
    given, _, _ = problem(torch.float32)
    errors = [
        output_error(given, OWQ(bits=2, target_rank=k).quantize(given)) for k in (0, 2, 5, 20)
    ]
    assert errors == sorted(errors, reverse=True) and errors[1] < 0.8 * errors[0]


def test_sensitivity_by_input_energy_alone():
    given, x, _ = problem()
    given.weight[:, 5] = 0.0  # nothing to round
    chosen = [
        OWQ(bits=2, target_rank=3, sensitivity=which).quantize(given).columns.tolist()
        for which in ("input", "error")
    ]
    assert chosen[0] == sorted((x**2).sum(0).argsort(descending=True)[:3].tolist())
    assert 5 in chosen[0] and 5 not in chosen[1]


def counts(method, *shapes):
    return [method.outliers(name, columns) for name, columns in shapes]


def test_outliers_as_published():
    """LLaMA-3-8B at 3.01: 6 in each of q, k, v, o, 2 in up and gate, 8 in down."""
    attention = [(f"model.layers.0.self_attn.{x}_proj", 4096) for x in "qkvo"]
    mlp = [(f"model.layers.0.mlp.{x}_proj", c) for x, c in (("up", 4096), ("down", 14336))]
    method = OWQ(bits=3, target_bits=3.01)
    assert counts(method, *attention, *mlp) == [6, 6, 6, 6, 2, 8]
    rows = {"q": 4096, "k": 1024, "v": 1024, "o": 4096}
    extra = sum(13 * 6 * n for n in rows.values()) + 13 * (2 * 2 * 14336 + 8 * 4096)
    weights = sum(4096 * n for n in rows.values()) + 3 * 4096 * 14336
    assert 3 + extra / weights == pytest.approx(3.009, abs=5e-4)
    few = OWQ(bits=3, target_bits=3.01, outlier_layers=("*q_proj", "*k_proj"), layers_per_block=2)
    assert counts(few, *attention, *mlp) == [20, 20, 0, 0, 0, 0]  # 18.9


def test_outliers_that_spend_the_target_in_each_layer():
    method = OWQ(bits=2, target_bits=2.05, split="layer")
    assert counts(method, ("a.mlp.up", 576), ("a.q", 576), ("b", 1536)) == [2, 2, 5]
    given, _, _ = problem(torch.float32, scale_dtype=torch.float16)
    layer = OWQ(bits=2, target_bits=3.4, split="layer").quantize(given)
    assert layer.record["weak_columns"] == 4 and layer.record["weight_bits"] == 3.4
    by_hand = 3.4 * ROWS * COLUMNS + (16 + 2) * ROWS + 32 * 4
    assert layer.stored_bits == pytest.approx(by_hand)


def test_layers_are_chosen_by_name():
    given, _, _ = problem(torch.float32)
    assert not len(OWQ(target_rank=4, outlier_layers=("*down",)).quantize(given).columns)
    assert len(OWQ(target_rank=4, outlier_layers=("*down", "*.q")).quantize(given).columns) == 4
    assert len(OWQ(target_rank=4, outlier_layers=("q",)).quantize(given).columns) == 4


@pytest.mark.parametrize("size", [-1, 8])
def test_the_null_space_step_scales_the_others_alone(size):
    given, x, _ = problem(torch.float32)
    inner = OWQ(bits=2, target_rank=4, group_size=size)
    before, after = inner.quantize(given), NullSpace(inner=inner).quantize(given)
    weak = before.columns.tolist()
    assert torch.equal(after.grid.codes, before.grid.codes)
    assert torch.equal(after.values, before.values)
    arguments = (t.double().numpy() for t in (given.weight, before.dequantize()))
    expected = oracle.nullspace_alpha(*arguments, weak, x.numpy(), after.record["kept_rank"], 0.2)
    factors = (after.grid.scale / before.grid.scale).double().numpy()
    # float32 eigenvectors: a few eps over the gap at the cut
    np.testing.assert_allclose(factors, expected[:, None] + 0 * factors, rtol=0, atol=2e-5)
    assert np.abs(expected - 1).max() > 0.005
    for layer, key in ((before, "output_error_before"), (after, "output_error")):
        error = (x @ (given.weight - layer.dequantize()).double().T).square().sum()
        whole = (x @ given.weight.double().T).square().sum()
        assert after.record[key] == pytest.approx(float(error / whole), rel=1e-3)


@pytest.mark.parametrize("target", ["own", "full_precision"])
@pytest.mark.parametrize(("size", "per"), [(-1, "group"), (8, "group"), (8, "row")])
def test_output_scales_fit_what_weak_columns_leave(size, per, target):
    given, x, x_full = problem(torch.float32)
    inner = OWQ(bits=2, target_rank=4, group_size=size)
    before = inner.quantize(given)
    after = OutputScales(inner=inner, target=target, scales_per=per).quantize(given)
    group = 8 if per == "group" and size == 8 else COLUMNS
    goal = x if target == "own" else x_full
    scaled = before.scaled_part().double()
    fixed = before.dequantize().double() - scaled
    expected = oracle.minimised_output_alpha(
        given.weight.double(), scaled, fixed, x, goal, group, 0.5
    )
    factors = (after.grid.scale / before.grid.scale).double()
    # float32 moments of 240 tokens against float64 tokens
    torch.testing.assert_close(factors, expected.expand(factors.shape), rtol=0, atol=3e-5)
    assert (expected - 1).abs().max() > 0.005
    assert torch.equal(after.values, before.values)


def test_held_out_ridge_works_with_weak_columns():
    given, x, x_full = problem(torch.float32)
    inner = OWQ(bits=2, target_rank=4, group_size=8)
    layer = OutputScales(inner=inner, scales_held_out=True).quantize(given)
    ridge = layer.record["scales_ridge"]
    again = OutputScales(inner=inner, scales_ridge=ridge).quantize(given)
    assert torch.equal(layer.dequantize(), again.dequantize())


def test_the_compensated_weight_is_what_was_rounded():
    given, _, _ = problem()
    method = OWQ(bits=2, target_rank=4, block_size=1)
    layer = method.quantize(given)
    compensated = method.compensated(given, layer.dequantize())
    assert torch.equal(layer.dequantize(), method.quantize(given).dequantize())
    weak, scale, zero = layer.columns.long(), layer.grid.scale, layer.grid.zero
    codes = (torch.round(compensated / scale) + zero).clamp(0, 3).to(torch.uint8)
    rest = torch.tensor([j for j in range(COLUMNS) if j not in weak.tolist()])
    assert torch.equal(codes[:, rest], layer.grid.codes[:, rest])
    # stored in bfloat16
    torch.testing.assert_close(
        compensated[:, weak].float(), layer.values.float(), rtol=2**-8, atol=1e-6
    )
    released = {**RELEASED_NULLSPACE["owq"], "gram": "second_moment"}
    stepped = NullSpace(inner=method, **released).quantize(problem(torch.float32)[0])
    assert torch.equal(stepped.columns, layer.columns)


def test_dead_columns_are_rounded_and_never_weak():
    given, x, x_full = problem(torch.float32)
    x[:, [0, 9]] = 0
    statistics = InputStatistics(COLUMNS, RequiredStatistics.GRAM)
    statistics.update(x)
    given = dataclasses.replace(given, statistics=statistics)
    for count, weak in ((4, 4), (COLUMNS - 1, COLUMNS - 2)):
        layer = OWQ(bits=2, target_rank=count).quantize(given)
        assert len(layer.columns) == layer.record["weak_columns"] == weak
        assert not {0, 9} & set(layer.columns.tolist())
        nearest = RTN(bits=2).fitted_grid.encode(given.weight, layer.grid.scale, layer.grid.zero)
        assert torch.equal(layer.grid.codes[:, [0, 9]], nearest[:, [0, 9]])


def test_refusals():
    for options, match in (
        ({"bits": 4, "target_bits": 3.01}, r"target_bits must be at least bits \(4\).*got 3.01"),
        ({"target_bits": 16.0}, "below 16"),
        ({"target_bits": float("nan")}, "target_bits"),
        ({"target_bits": 4.1, "target_rank": 3}, "give one of them"),
        ({"target_rank": -1}, "target_rank is -1; .* at least 0"),
        ({"layers_per_block": 0}, "layers_per_block is 0"),
        ({"narrow_ratio": 0.0}, "narrow_ratio is 0.0; .* above 0 and at most 1"),
        ({"damping": -1.0}, "damping is -1.0"),
        ({"block_size": 0}, "block_size is 0"),
        ({"bits": 7}, "bits is 7; it takes one of 2, 3, 4, 5, 6, 8"),
    ):
        with pytest.raises(InputError, match=match):
            OWQ(**options)
    with pytest.raises(InputError, match=r"h\.0\.k: 64 columns in 16 bits.* 48"):
        OWQ(target_rank=64).check("h.0.k", (32, 48))
    with pytest.raises(InputError, match=r"h\.0\.k.*48 columns"):
        OWQ(group_size=32).check("h.0.k", (32, 48))
    given, _, _ = problem(torch.float32)
    given.weight[:, 5] = 1e6
    with pytest.raises(NumericalError, match=r"h\.0\.self_attn\.q.*overflows torch.float16"):
        OWQ(target_rank=1).quantize(given)
    given, _, _ = problem(torch.float32)
    given.statistics.update(torch.full((2, 1, COLUMNS), float("nan")), torch.zeros(2, 1, COLUMNS))
    with pytest.raises(NumericalError, match=r"h\.0\.self_attn\.q.*not finite"):
        OWQ().quantize(given)
    assert METHODS["owq"] is OWQ and OWQ().required_statistics == RequiredStatistics.GRAM
    assert isinstance(OWQ().quantize(problem(torch.float32)[0]), OutlierLinear)
