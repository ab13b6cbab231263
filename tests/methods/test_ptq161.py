"""PTQ1.61 against its definition: the mask, the grid, the loss and the fit of a block."""

from functools import partial

import pytest
import torch
from oracles import ptq161 as oracle
from refit.test_block import OneBlock

from q2n.config.owners import build_plan
from q2n.config.reading import read_settings
from q2n.errors import InputError
from q2n.layers.learned_factors import FactorFit, LearnedFactors
from q2n.layers.salient_columns import SalientColumnsLinear
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods.ptq161 import PTQ161
from q2n.models.targets import targets_in
from q2n.refit.block import Window
from q2n.refit.epochs import squared_and_direction
from q2n.refit.factors import learn_factors


def statistics_of(inputs, full=None) -> InputStatistics:
    both = RequiredStatistics.GRAM | RequiredStatistics.SIZES
    found = InputStatistics(inputs.shape[-1], both)
    for part in range(len(inputs)):
        found.update(inputs[part], None if full is None else full[part])
    return found


def problem(kind="gaussian", rows=12, columns=40) -> LayerProblem:
    """A layer whose inputs differ in size; of another kind, its weights have a few large ones,
    zeros and a mean."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(rows, columns, generator=generator)
    if kind == "heavy":
        weight = 0.02 * weight * weight.abs() ** 2 + 0.01
        weight[2, 3:7] = 0
    sizes = torch.rand(columns, generator=generator) + 0.1
    inputs = torch.randn(3, 50, columns, generator=generator) * sizes
    return LayerProblem(name="layer", weight=weight, statistics=statistics_of(inputs))


@pytest.mark.parametrize("kind", ["gaussian", "heavy"])
def test_the_start_is_the_released_quantizer(kind):
    given = problem(kind)
    layer = PTQ161().quantize(given)
    salient = oracle.salient_columns(given.statistics.sizes.largest)
    assert torch.equal(layer.salient, salient) and int(salient.sum()) == 9
    mean, magnitude = oracle.row_values(given.weight, salient)
    ones = torch.ones(12), torch.ones(40)
    expected = oracle.dense(given.weight, salient, mean, magnitude, *ones)
    torch.testing.assert_close(layer.dequantize(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(layer.dequantize()[:, salient], expected[:, salient])


def test_saliency_is_of_the_full_precision_input():
    generator = torch.Generator().manual_seed(1)
    inputs, full = torch.randn(2, 2, 20, 10, generator=generator)
    sizes = statistics_of(inputs, full).sizes
    assert torch.equal(sizes.largest, full.abs().amax((0, 1)))
    torch.testing.assert_close(sizes.total, full.abs().sum((0, 1)))
    halves = statistics_of(inputs[:1], full[:1]) + statistics_of(inputs[1:], full[1:])
    assert torch.equal(halves.sizes.largest, sizes.largest)
    torch.testing.assert_close(halves.sizes.total, sizes.total)


def test_mean_saliency_goes_by_the_sum():
    inputs = torch.full((1, 4, 10), 0.5)
    inputs[0, 0, 7] = 9.0  # a single spike
    inputs[0, :, 4] = 3.0
    given = LayerProblem(name="x", weight=torch.randn(3, 10), statistics=statistics_of(inputs))
    largest, mean = (
        PTQ161(salient_fraction=0.05, saliency=how).quantize(given).salient.nonzero().tolist()
        for how in ("largest", "mean")
    )
    assert (largest, mean) == ([[7]], [[4]])


def test_the_loss_is_the_released_one():
    generator = torch.Generator().manual_seed(2)
    output, first, second = torch.randn(3, 1, 6, 16, generator=generator) + 0.3
    actual = squared_and_direction(output, first) + squared_and_direction(output, second)
    torch.testing.assert_close(actual, oracle.loss(output, [first, second]))


def test_bits_are_those_of_every_part():
    layer = PTQ161().quantize(problem(rows=12, columns=40))
    codes, mask = 12 * (31 + 4 * 9), 40
    rows, columns = 12 * (3 * 32 + 4), 31 * 32  # float32 here; 16 bits in a checkpoint
    assert layer.stored_bits == codes + mask + rows + columns


def test_a_layer_of_4096_has_1617_bits():
    """The published 1.61 counts one vector of rows and one of columns; here all of them count."""
    rows, columns = torch.zeros(2, 4096, dtype=torch.bfloat16)
    salient = torch.arange(4096) < 820
    layer = SalientColumnsLinear(
        salient=salient,
        low_codes=torch.zeros(4096, 3276, dtype=torch.uint8),
        high_codes=torch.zeros(4096, 820, dtype=torch.uint8),
        mean=rows,
        magnitude=rows,
        factor=columns[:3276],
        scale=rows,
        zero=torch.zeros(4096, dtype=torch.uint8),
        high_bits=4,
    )
    assert layer.bits_per_weight == pytest.approx(1.6167, abs=1e-4)


def output_of(inputs, call):
    return inputs.run(call).hidden


@pytest.mark.slow
def test_factors_are_those_of_the_released_loop(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    one = OneBlock(count=3)
    targets = targets_in(one.block)
    generator = torch.Generator().manual_seed(5)
    own = one.target + 0.1 * torch.randn(one.target.shape, generator=generator)
    layers = {
        name: PTQ161().quantize(
            LayerProblem(
                name=name,
                weight=target.weight(),
                statistics=statistics_of(torch.randn(1, 8, target.shape[1], generator=generator)),
            )
        )
        for name, target in targets.items()
    }

    def window(number):
        inputs, full, _ = one.window(number)
        return Window(inputs, full, own[number : number + 1])

    fit = FactorFit(epochs=2, magnitude_rate=5e-3, factor_rate=1e-2)
    found, (before, after) = learn_factors(one.block, layers, window, 3, fit, name="blocks.1")
    expected = oracle.fit_block(
        one.block,
        {target.parameter: target.weight() for target in targets.values()},
        {targets[name].parameter: layer.salient for name, layer in layers.items()},
        [partial(output_of, one.window(number).inputs) for number in range(3)],
        one.target.split(1),
        own.split(1),
        2,
        (5e-3, 1e-2),
    )
    assert after < before
    for name, layer in found.items():
        assert torch.equal(layer.low_codes, layers[name].low_codes)
        # Adam divides by a root of the gradient: its float32 errors enter relative to a rate
        torch.testing.assert_close(
            layer.dequantize(), expected[targets[name].parameter], rtol=0, atol=2e-5
        )
    worse = FactorFit(epochs=1, magnitude_rate=10.0, factor_rate=10.0)
    assert learn_factors(one.block, layers, window, 3, worse, name="x")[0] == layers


def test_what_was_learned_is_what_is_stored():
    layer = PTQ161().quantize(problem("heavy"))
    before = layer.dequantize()
    form = LearnedFactors(layer)
    generator = torch.Generator().manual_seed(4)
    for parameter in form.parameters():
        parameter.data *= 1 + 0.3 * torch.randn(parameter.shape, generator=generator)
    learned = form.quantized().dequantize()
    torch.testing.assert_close(learned, form.weight(torch.float32))
    assert not learned.requires_grad
    assert torch.equal(layer.dequantize(), before)  # it is what remains where the loss rises


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"salient_fraction": 1.0}, "salient_fraction is 1.0"),
        ({"saliency": "median"}, "saliency is 'median'; it takes one of largest, mean"),
        ({"high_bits": 7}, "high_bits is 7"),
        ({"fit_epochs": 0}, "fit_epochs is 0"),
        ({"bits": 4}, "ptq161 has no option 'bits'"),
        ({"refit": "block"}, "use --refit model or off, not block"),
        ({"incoherence": True}, "leave out --incoherence"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(InputError, match=message) as refused:
        build_plan(read_settings({"method": "ptq161", **settings}))
    assert "\n" not in str(refused.value)
