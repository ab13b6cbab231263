"""The weight that a method's error feedback left, which the null-space step can take for W."""

import numpy as np
import oracles
import pytest
import torch

from q2n.config.presets import RELEASED_NULLSPACE
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import Compensating, LayerProblem
from q2n.methods import METHODS
from q2n.methods.gptq import GPTQ
from q2n.methods.ldlq import LDLQ
from q2n.methods.leanquant import LeanQuant
from q2n.methods.owq import OWQ
from q2n.methods.pbllm import PBLLM
from q2n.methods.rtn import RTN
from q2n.wrappers.nullspace import NullSpace

ROWS, COLUMNS, BLOCK = 9, 48, 16
NATURAL = np.arange(COLUMNS)


def problem(dtype=torch.float64):
    """A layer whose inputs are correlated and have a mean at each position."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator, dtype=torch.float64)
    spread = torch.logspace(0, -1.5, COLUMNS, dtype=torch.float64)
    x = torch.randn(4, 60, COLUMNS, generator=generator, dtype=torch.float64)
    x = ((x + torch.randn(60, COLUMNS, generator=generator)) * spread) @ mix
    needs = RequiredStatistics.GRAM | RequiredStatistics.POSITIONS
    statistics = InputStatistics(COLUMNS, needs, dtype=dtype)
    statistics.update(x)
    weight = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64).to(dtype)
    return LayerProblem(name="h.0.up_proj", weight=weight, statistics=statistics)


def descending(gram):
    return np.argsort(-np.diag(gram), kind="stable")


METHODS_AND_ORDERS = {
    "gptq": (GPTQ(bits=2, block_size=BLOCK), descending),
    "gptq natural": (GPTQ(bits=3, act_order=False, block_size=BLOCK), lambda _: NATURAL),
    "leanquant": (LeanQuant(bits=2, damping=0.01, block_size=BLOCK), descending),
    "leanquant uniform": (
        LeanQuant(bits=2, levels="uniform", damping=0.01, block_size=BLOCK), descending
    ),
    "pbllm": (PBLLM(low_fraction=0.8, block_size=BLOCK), lambda _: NATURAL),
    "owq": (OWQ(bits=2, target_rank=4, act_order=False, block_size=BLOCK), None),
    "ldlq": (LDLQ(bits=2), lambda _: NATURAL[::-1]),
    "ldlq sorted": (LDLQ(bits=2, order="sorted", descent_passes=3), descending),
    "ldlq minmax": (LDLQ(bits=2, grid="minmax"), lambda _: NATURAL[::-1]),
}  # fmt: skip
every_method = pytest.mark.parametrize("name", METHODS_AND_ORDERS)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(LDLQ, "block_size", BLOCK)


def order_of(name, layer, gram):
    order = METHODS_AND_ORDERS[name][1]
    if order is not None:
        return order(gram)
    weak = layer.fixed_columns.numpy()
    return np.concatenate([np.setdiff1d(NATURAL, weak), weak])


def copy_of(name, given, layer):
    """What the textbook's loop leaves, and the columns that are on a grid."""
    gram = given.statistics.gram.double().numpy()
    order = order_of(name, layer, gram)
    copy = oracles.working_copy(
        given.weight.double().numpy(), layer.dequantize().double().numpy(), gram, order, 0.01, BLOCK
    )
    return copy, np.setdiff1d(NATURAL, layer.fixed_columns.numpy())


@every_method
def test_the_compensated_weight_is_the_working_copy_of_the_textbooks_loop(name):
    given, method = problem(), METHODS_AND_ORDERS[name][0]
    layer = method.quantize(given)
    found = method.compensated(given, layer.dequantize())
    expected, columns = copy_of(name, given, layer)
    # `dequantize` is float32, and the loop goes through an inverse
    np.testing.assert_allclose(found[:, columns], expected[:, columns], rtol=0, atol=2e-5)
    assert (found - given.weight)[:, columns].abs().max() > 0.05
    first = order_of(name, layer, given.statistics.gram.numpy())[:BLOCK].copy()
    torch.testing.assert_close(found[:, first], given.weight[:, first], rtol=0, atol=1e-12)


@every_method
def test_q2n_with_the_compensated_reference_is_eq_9_with_it(name):
    given, method = problem(torch.float32), METHODS_AND_ORDERS[name][0]
    layer = method.quantize(given)
    options = {"index": "released", "gram": "mean_activation", "reference": "compensated"}
    stepped = NullSpace(inner=method, **options).quantize(given)
    copy, columns = copy_of(name, given, layer)
    before = layer.scaled_part().double()
    reference = before.clone()  # columns in 16 bits count as exact
    reference[:, columns] = torch.from_numpy(copy)[:, columns]
    gram = given.statistics.position_gram.double()
    kept = stepped.record["kept_rank"]
    expected = oracles.projected_alpha(reference, before, gram, kept, 0.2)
    after = stepped.scaled_part().double()
    found = (after * before).sum(1) / (before * before).sum(1)
    # float32 eigenvectors: a few eps over the gap at the cut
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    original = NullSpace(inner=method, **{**options, "reference": "original"}).quantize(given)
    assert abs(original.record["alpha_mean"] - stepped.record["alpha_mean"]) > 1e-3


def test_clamped_weights_are_what_is_compensated():
    given = problem()
    method = LDLQ(bits=2, clip_sigma=1.0, clamp_first=True)
    layer = method.quantize(given)
    found = method.compensated(given, layer.dequantize())
    reach = float(given.weight.square().mean().sqrt())
    last = torch.arange(COLUMNS - BLOCK, COLUMNS)  # the first block that is visited
    expected = given.weight.clamp(-reach, reach)[:, last]
    torch.testing.assert_close(found[:, last], expected, rtol=0, atol=1e-6)


def test_without_feedback_nothing_is_compensated():
    given = problem()
    method = PBLLM(feedback=False)
    assert torch.equal(method.compensated(given, method.quantize(given).dequantize()), given.weight)
    assert not isinstance(RTN(), Compensating)


def test_every_method_with_feedback_can_tell_its_working_copy():
    assert {name for name, method in METHODS.items() if issubclass(method, Compensating)} == {
        *METHODS
    } - {"rtn", "ptq161"}
    assert set(RELEASED_NULLSPACE) - {"quarot"} <= set(METHODS)
