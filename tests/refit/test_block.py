"""Refit of one decoder block toward its full-precision output."""

from copy import deepcopy

import pytest
import torch
from tiny import tiny_model

from q2n.errors import InputError, NumericalError
from q2n.method import LayerProblem
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import BlockInput
from q2n.models.source import open_source
from q2n.models.targets import targets_in
from q2n.refit.block import BlockRefit, Window, relative_error
from q2n.refit.tuner import Rates, shuffled

pytestmark = pytest.mark.slow


class OneBlock:
    """The second block of a tiny model, its linears rounded, and windows of its input."""

    def __init__(self, architecture="llama", dtype=torch.float32, count=6):
        model = BlockwiseModel(open_source(tiny_model(architecture, layers=2).to(dtype)))
        tokens = torch.randint(3, 128, (count, 12), generator=torch.Generator().manual_seed(3))
        inputs = next(model.record_inputs([tokens]))
        self.block, self.count = model.load_block(1), count
        self.given = BlockInput(inputs.hidden, inputs.calls[1], inputs.carried)
        with torch.no_grad():
            self.target = self.given.run(self.block).hidden
        self.layers = {
            name: RTN(bits=2).quantize(
                LayerProblem(name=name, weight=target.weight(), statistics=None)
            )
            for name, target in targets_in(self.block).items()
        }

    def window(self, number):
        return Window(self.given.window(number, self.count), self.target[number : number + 1])

    def error(self, layers, norms) -> float:
        """Of the block with these layers and norms, over all windows."""
        block = deepcopy(self.block)
        with torch.no_grad():
            for name, layer in layers.items():
                targets_in(block)[name].set(layer.dequantize())
            for name, norm in norms.items():
                block.get_parameter(name).copy_(norm)
            output = self.given.run(block).hidden
        return float(relative_error(output, self.target))

    def refit(self, steps=24, windows=None, **fields):
        refit = BlockRefit(steps=steps, rates=Rates(scale=0.01, norm=0.01), **fields)
        windows = windows or self.window
        return refit(self.block, self.layers, windows, self.count, name="blocks.1", seed=5)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "opt", "phi", "gpt2"])
def test_the_output_comes_nearer_in_every_dtype(monkeypatch, architecture, dtype, fast):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    one = OneBlock(architecture, dtype)
    tuned = one.refit(8)
    assert one.error(tuned.layers, tuned.norm_weights) < one.error(one.layers, {})
    assert {norm.dtype for norm in tuned.norm_weights.values()} == {dtype}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_losses_are_the_windows_errors_in_order(monkeypatch, architecture):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    one, asked = OneBlock(architecture), []

    def windows(number):
        asked.append(number)
        return one.window(number)

    tuned = one.refit(13, windows)
    order = shuffled(6, 13, 5)
    assert asked == [*order[:4], *order, *order[:4]]  # the check before and after
    assert sorted(order[:6]) == list(range(6))
    # its first loss is that of the layers as they came, on the first window alone
    alone = OneBlock(architecture)
    alone.given, alone.target = one.window(asked[0])[:2]
    assert tuned.losses[0] == pytest.approx(alone.error(one.layers, {}), rel=1e-5)
    assert len(tuned.losses) == 13


def test_a_refit_that_rises_is_taken_back():
    one = OneBlock()
    tuned = BlockRefit(steps=4, rates=Rates(scale=5.0, norm=5.0))(
        one.block, one.layers, one.window, one.count, name="blocks.1", seed=5
    )
    before, after = tuned.change
    assert after > before and tuned.layers == one.layers
    for name, norm in tuned.norm_weights.items():
        assert torch.equal(norm, one.block.get_parameter(name))


def test_codes_stay_and_the_block_too():
    one = OneBlock()
    before = {name: tensor.clone() for name, tensor in one.block.state_dict().items()}
    tuned = one.refit(6)
    assert tuned.layers.keys() == one.layers.keys()
    for name, layer in one.layers.items():
        assert torch.equal(tuned.layers[name].codes, layer.codes)
        assert not torch.equal(tuned.layers[name].scale, layer.scale)
    assert tuned.norm_weights.keys() == {
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
    }
    for name, tensor in one.block.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in one.block.parameters())


def test_a_nan_names_the_block():
    one = OneBlock()
    one.target = one.target * float("nan")
    with pytest.raises(NumericalError, match=r"blocks\.1: .* nan"):
        one.refit(3)


def test_the_error_is_relative_to_each_token():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 5, 8, generator=generator)
    output = target + 0.1 * torch.randn(2, 5, 8, generator=generator)
    target[1, 3] *= 1e4  # a token with massive activations counts as much as any
    output[1, 3] *= 1e4
    expected = 0.0
    for window in range(2):
        for token in range(5):
            error = (output[window, token] - target[window, token]).double()
            expected += float(error @ error / target[window, token].double().square().sum()) / 10
    assert float(relative_error(output, target)) == pytest.approx(expected, rel=1e-5)
    half = relative_error(output.half(), target.half())  # whose squares would overflow
    assert half.dtype == torch.float32 and float(half) == pytest.approx(expected, rel=0.05)


def test_a_zero_token_gives_no_nan():
    zeros = torch.zeros(1, 2, 4)
    assert float(relative_error(zeros, zeros)) == 0


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="refit_steps must be at least 1, got 0"):
        BlockRefit(steps=0)
