"""Output scales and correction on layers and text of SmolLM2-135M."""

import copy
import dataclasses

import oracles
import pytest
import torch
from transformers import AutoModelForCausalLM
from two_streams import factors, gathered, loss, on_tokens

from q2n.data.corpora import load_corpus
from q2n.data.tokenizer import load_tokenizer
from q2n.data.windows import calibration_windows
from q2n.method import LayerProblem
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.wrappers.correction import InputErrorCorrection
from q2n.wrappers.output_scales import OutputScales

REAL = ("self_attn.q_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def real_layers(smollm2_head):
    """Two linears of the second block behind a first block of 3 bits, with the tokens of both
    models and the statistics of these tokens."""
    windows = calibration_windows(
        load_corpus("sotu", "train"), load_tokenizer(smollm2_head), count=4, length=256, seed=0
    )
    full = AutoModelForCausalLM.from_pretrained(smollm2_head, dtype=torch.float32).eval()
    model = copy.deepcopy(full)
    for name, linear in model.model.layers[0].named_modules():
        if isinstance(linear, torch.nn.Linear):
            given = LayerProblem(name=name, weight=linear.weight.detach(), statistics=None)
            linear.weight.data = RTN(bits=3).quantize(given).dequantize()
    inputs = [_inputs(m, windows.tokens) for m in (model, full)]
    found = {}
    for name in REAL:
        x, x_full = (tokens[name] for tokens in inputs)
        weight = model.model.layers[1].get_submodule(name).weight.detach()
        given = LayerProblem(name=name, weight=weight, statistics=gathered(x, x_full))
        found[name] = given, x, x_full
    return found


def _inputs(model, windows):
    """What the linears REAL of the second block read."""
    found = {}
    for name in REAL:
        model.model.layers[1].get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: found.update({name: args[0].flatten(0, 1)})
        )
    with torch.no_grad():
        model.model(windows, use_cache=False)
    return found


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("target", ["own", "full_precision"])
def test_factors_of_real_layers_equal_those_of_tokens(real_layers, name, target):
    given, x, x_full = real_layers[name]
    given = dataclasses.replace(given, weight=given.weight[::24])
    goal = x if target == "own" else x_full
    assert (x - x_full).norm() > 0.02 * x_full.norm()
    for inner, per, size in (
        (RTN(bits=3, group_size=64), "group", 64),
        (RTN(bits=3, group_size=64), "row", x.shape[1]),
        (RTN(bits=3), "group", x.shape[1]),
    ):
        before = inner.quantize(given)
        after = OutputScales(inner=inner, target=target, scales_per=per).quantize(given)
        expected = oracles.regressed_output_alpha(
            *on_tokens(given, before, x, goal), size, 0.5
        ).expand(before.scale.shape)
        torch.testing.assert_close(factors(after, before), expected, rtol=0, atol=1e-4)
        assert (expected - 1).abs().max() > 0.02
        assert (loss(given, after, x, goal) < loss(given, before, x, goal)).all()


def test_correction_and_factors_bring_a_real_layer_closer(real_layers):
    given, x, x_full = real_layers["self_attn.q_proj"]
    inner = GPTQ(bits=3, group_size=64)
    methods = (
        inner,
        InputErrorCorrection(inner=inner),
        OutputScales(inner=InputErrorCorrection(inner=inner)),
    )
    plain, corrected, both = (
        float(loss(given, method.quantize(given), x, x_full).sum()) for method in methods
    )
    assert both < corrected < plain
