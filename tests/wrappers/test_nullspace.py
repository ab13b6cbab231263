import fnmatch
from functools import partial

import oracles
import pytest
import torch

from q2n.config.presets import RELEASED_NULLSPACE
from q2n.errors import InputError, NumericalError
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.wrappers.nullspace import NullSpace

ROWS, COLUMNS = 12, 32


def problem(name="h.0.up_proj", seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -1.5, COLUMNS)
    mix = torch.linalg.qr(torch.randn(COLUMNS, COLUMNS, generator=generator))[0]
    x = (torch.randn(4, 60, COLUMNS, generator=generator) * spread) @ mix + 0.3 * mix[0]
    statistics = InputStatistics(COLUMNS, RequiredStatistics.GRAM | RequiredStatistics.POSITIONS)
    statistics.update(x)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    return LayerProblem(name=name, weight=weight, statistics=statistics, **options), x


def relative_error(given, x, layer):
    error = x.double() @ (given.weight - layer.dequantize()).double().T
    return float((error**2).sum() / ((x.double() @ given.weight.double().T) ** 2).sum())


def row_factors(after, before):
    return (after.dequantize() * before.dequantize()).sum(1) / (before.dequantize() ** 2).sum(1)


def test_a_massive_activation_does_not_move_alpha():
    given, x = problem()
    x[0, 0, 5] = 10**4 * x.norm()  # 1e8 times the energy of all else
    given.statistics.update(x[:1, :1].expand(1, 60, -1) * torch.eye(60)[:, :1])
    inner = RTN(bits=3)
    before, after = inner.quantize(given), NullSpace(inner=inner).quantize(given)
    gram = given.statistics.gram.double()
    values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    assert values[0] > 1e7 * values[1:].sum()
    start = after.record["kept_rank"]
    assert start == oracles.paper_start(values.tolist(), 0.1)
    expected = oracles.projected_alpha(
        given.weight.double(), before.dequantize().double(), gram, start, 0.2
    )
    # scales are float32
    torch.testing.assert_close(row_factors(after, before).double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("inner", [RTN(bits=3), GPTQ(bits=3), GPTQ(bits=2, group_size=8)])
def test_any_method_gets_the_papers_alpha(inner):
    given, x = problem()
    before, after = inner.quantize(given), NullSpace(inner=inner).quantize(given)
    assert torch.equal(before.codes, after.codes)
    record = after.record
    gram = given.statistics.gram.double()
    values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).tolist()
    assert record["kept_rank"] == oracles.paper_start(values, 0.1)
    assert record["nullspace_energy"] == pytest.approx(
        sum(values[record["kept_rank"] :]) / sum(values), abs=1e-5
    )
    expected = oracles.projected_alpha(
        given.weight.double(), before.dequantize().double(), gram, record["kept_rank"], 0.2
    )
    # float32 eigenvectors: a few eps over the gap at the cut
    torch.testing.assert_close(row_factors(after, before).double(), expected, rtol=0, atol=2e-5)
    assert record["alpha_mean"] == pytest.approx(float(expected.mean()), abs=2e-5)
    assert record["alpha_min"] == pytest.approx(float(expected.min()), abs=2e-5)
    assert record["alpha_max"] == pytest.approx(float(expected.max()), abs=2e-5)
    assert record["alpha_std"] == pytest.approx(float(expected.std(correction=0)), abs=2e-5)
    plain, stepped = (relative_error(given, x, layer) for layer in (before, after))
    assert record["output_error_before"] == pytest.approx(plain, rel=1e-3)
    assert record["output_error"] == pytest.approx(stepped, rel=1e-3)
    assert record["nullspace_seconds"] >= 0
    assert "nullspace_note" not in record
    assert set(before.record) <= set(record)


OPTIONS = [
    {"rule": "matrix_rank"},
    {"rule": "adam_nscl"},
    {"index": "algorithm1"},
    {"index": "released"},
    {"decomposition": "svd"},
    {"solver": "adam"},
    {"solver": "adam", "adam_steps": 100, "adam_rate": 5e-4},
    {"gram": "mean_activation"},
    {"reference": "compensated"},
    {"relative_ridge": True},
    {"threshold": 0.5},
    {"ridge": 0.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_every_option_does_what_it_says(options):
    given, x = problem()
    inner = GPTQ(bits=2, block_size=8)
    before = inner.quantize(given)
    after = NullSpace(inner=inner, **options).quantize(given)
    statistics = given.statistics
    gram = (statistics.position_gram if options.get("gram") else statistics.gram).double()
    reference = given.weight
    if options.get("reference"):
        reference = inner.compensated(given, before.dequantize())
    dense = before.dequantize().double()
    ridge = options.get("ridge", 0.2)
    if options.get("relative_ridge"):
        ridge = 0.2 * (dense**2).sum(1)
    kept = after.record["kept_rank"]
    solve = oracles.projected_alpha
    if options.get("solver"):
        steps, rate = options.get("adam_steps", 20), options.get("adam_rate", 2e-3)
        solve = partial(oracles.adam_alpha, steps=steps, rate=rate)
    if isinstance(ridge, torch.Tensor):
        expected = torch.cat(
            [
                solve(reference.double()[i : i + 1], dense[i : i + 1], gram, kept, r)
                for i, r in enumerate(ridge)
            ]
        )
    else:
        expected = solve(reference.double(), dense, gram, kept, ridge)
    torch.testing.assert_close(row_factors(after, before).double(), expected, rtol=0, atol=1e-4)
    assert after.record["output_error"] == pytest.approx(relative_error(given, x, after), rel=1e-3)


def test_kept_ranks_of_the_rules():
    given, _ = problem()

    def kept(**options):
        return NullSpace(inner=RTN(bits=3), **options).quantize(given).record["kept_rank"]

    paper = kept()
    assert kept(index="algorithm1") == paper - 1
    assert kept(index="released") in (paper, paper - 1)
    assert kept(decomposition="svd") == paper
    assert kept(threshold=0.5) < paper < kept(threshold=0.01)
    assert kept(rule="matrix_rank") == COLUMNS


def test_a_step_that_changes_nothing_says_so():
    # one direction carries everything: no index of the released code qualifies
    given, _ = problem()
    statistics = InputStatistics(COLUMNS, RequiredStatistics.GRAM)
    statistics.update(torch.zeros(4, COLUMNS).index_fill(1, torch.tensor([0]), 2.0))
    given = LayerProblem(name="h.0.up", weight=given.weight, statistics=statistics)
    layer = NullSpace(inner=RTN(bits=3), index="released").quantize(given)
    assert "no index qualifies" in layer.record["nullspace_note"]
    assert torch.equal(layer.scale, RTN(bits=3).quantize(given).scale)
    coarse, _ = problem(scale_dtype=torch.bfloat16)
    layer = NullSpace(inner=GPTQ(bits=4), ridge=1e5).quantize(coarse)
    assert "rounded" in layer.record["nullspace_note"]
    assert layer.record["output_error"] == pytest.approx(layer.record["output_error_before"])


def test_skipped_layers_keep_their_scales():
    given, _ = problem("model.layers.0.mlp.down_proj")
    assert fnmatch.fnmatchcase(given.name, "*down_proj")
    layer = NullSpace(inner=RTN(bits=3), skip_layers=("*down_proj",)).quantize(given)
    assert torch.equal(layer.scale, RTN(bits=3).quantize(given).scale)
    assert "skipped" in layer.record["nullspace_note"]
    other, _ = problem("model.layers.0.mlp.up_proj")
    layer = NullSpace(inner=RTN(bits=3), skip_layers=("*down_proj",)).quantize(other)
    assert not torch.equal(layer.scale, RTN(bits=3).quantize(other).scale)


def test_presets():
    released = NullSpace(inner=GPTQ(bits=3), **RELEASED_NULLSPACE["gptq"])
    assert released.required_statistics == RequiredStatistics.GRAM | RequiredStatistics.POSITIONS
    given, _ = problem()
    record = released.quantize(given).record
    # Adam moves alpha by at most about 20 steps of 0.002
    assert 0.959 < record["alpha_min"] <= record["alpha_max"] < 1.041
    assert NullSpace(inner=RTN()).required_statistics == RequiredStatistics.GRAM


def test_refusals():
    with pytest.raises(InputError, match="not around rtn; use --reference original"):
        NullSpace(inner=RTN(), reference="compensated")
    with pytest.raises(InputError, match="threshold is 0.0; it takes a finite number above 0"):
        NullSpace(inner=RTN(), threshold=0.0)
    with pytest.raises(InputError, match="ridge is -1.0; it takes a finite number at least 0"):
        NullSpace(inner=RTN(), ridge=-1.0)
    given, _ = problem()
    given.statistics.update(torch.full((1, 60, COLUMNS), float("inf")))
    with pytest.raises(NumericalError, match=r"h\.0\.up_proj.*not finite"):
        NullSpace(inner=RTN()).quantize(given)


def test_one_decomposition_serves_all_linears_of_a_site(monkeypatch):
    given, _ = problem()
    real, calls = torch.linalg.eigh, []
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: calls.append(1) or real(m))
    for bits in (2, 3):
        NullSpace(inner=GPTQ(bits=bits)).quantize(given)
    assert len(calls) == 1
