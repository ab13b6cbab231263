"""Adam on scales, norms and codes: what it changes, what it leaves, and by how much."""

from copy import deepcopy

import oracles
import pytest
import torch
from formats.tiny_models import random_layer
from tiny import tiny_model
from torch import nn

from q2n.errors import NumericalError
from q2n.method import LayerProblem
from q2n.methods.rtn import RTN
from q2n.refit.descent import fast_dtype, in_fast_dtype
from q2n.refit.tuner import Rates, Tuned, norm_weights, shuffled, tune


class Toy(nn.Module):
    """Norm, up, down: the smallest module with a norm weight and two linears."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, hidden):
        return self.down(self.up(self.norm(hidden)).relu())


@pytest.fixture
def exact(monkeypatch):
    """Matrix products in float32, on a machine that is fast in bfloat16 too."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)


@pytest.fixture
def toy():
    torch.manual_seed(0)
    module = Toy()
    nn.init.uniform_(module.norm.weight, 0.5, 2.0)
    return module


def rounded(module: nn.Module, bits: int = 2, dtype: torch.dtype = torch.float32):
    """Every linear of the module, rounded to nearest."""
    return {
        name: RTN(bits=bits).quantize(
            LayerProblem(name=name, weight=part.weight.detach(), statistics=None, scale_dtype=dtype)
        )
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
    }


def distance(module: nn.Module):
    """A loss: how far the tuned module's output is from the module's own."""
    hidden = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        target = module(hidden)

    def loss(call, step):
        part = slice(step % 8, step % 8 + 1)
        return (call(hidden[part]).float() - target[part]).square().mean()

    return loss


def with_tuned(module: nn.Module, tuned) -> nn.Module:
    """A copy of the module with the tuned layers and norms in their places."""
    copy = deepcopy(module)
    for name, layer in tuned.layers.items():
        copy.get_submodule(name).weight.data = layer.dequantize()
    for name, norm in tuned.norm_weights.items():
        copy.get_parameter(name).data = norm
    return copy


def tuned_toy(toy, steps=24, *, layers=None, **rates):
    loss = distance(toy)
    return tune(toy, layers or rounded(toy), Rates(**rates), steps, loss, name="toy")


@pytest.mark.parametrize("rates", [{"scale": 0.02, "norm": 0.02}, {"scale": 0.02, "norm": 0.0}])
def test_tuning_brings_the_module_nearer(toy, rates):
    layers = rounded(toy)
    tuned = tuned_toy(toy, 48, layers=layers, **rates)
    assert len(tuned.losses) == 48
    assert sum(tuned.losses[-8:]) < 0.8 * sum(tuned.losses[:8])
    loss = distance(toy)
    with torch.no_grad():  # what is returned is what was tuned
        before = with_tuned(toy, Tuned(layers, {}, [], (0.0, 0.0)))
        after = with_tuned(toy, tuned)
        actual = [sum(float(loss(m, step)) for step in range(8)) for m in (before, after)]
    assert actual[1] < 0.8 * actual[0]
    assert sum(tuned.losses[:8]) == pytest.approx(actual[0], rel=0.2)


def test_codes_are_tuned_if_their_rate_is_positive(toy):
    layers = rounded(toy)
    still = tuned_toy(toy, layers=layers, scale=0.02, norm=0.02)
    moving = tuned_toy(toy, layers=layers, scale=0.02, norm=0.02, code=0.2)
    for name, layer in layers.items():
        assert torch.equal(still.layers[name].codes, layer.codes)
        moved = (moving.layers[name].codes != layer.codes).float().mean()
        assert 0 < moved < 0.9
        assert moving.layers[name].codes.max() <= 3


@pytest.mark.parametrize("kind", ["scale", "norm", "code"])
def test_a_rate_of_0_freezes_its_kind(toy, kind):
    layers = rounded(toy)
    rates = {"scale": 0.02, "norm": 0.02, "code": 0.2, kind: 0.0}
    tuned = tuned_toy(toy, layers=layers, **rates)
    for name, layer in layers.items():
        actual = tuned.layers[name]
        assert torch.equal(actual.scale, layer.scale) == (kind == "scale")
        assert torch.equal(actual.codes, layer.codes) == (kind == "code")
        assert torch.equal(actual.zero, layer.zero)
    assert list(tuned.norm_weights) == ([] if kind == "norm" else ["norm.weight"])
    if tuned.norm_weights:
        assert not torch.equal(tuned.norm_weights["norm.weight"], toy.norm.weight)


def test_the_module_stays_as_it_is(toy):
    for parameter in toy.parameters():
        parameter.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in toy.state_dict().items()}
    tuned_toy(toy, scale=0.02, norm=0.02, code=0.2)
    assert all(torch.equal(before[name], tensor) for name, tensor in toy.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in toy.parameters())


def test_the_same_bits_each_time(toy):
    first, second = (tuned_toy(toy, scale=0.02, norm=0.02) for _ in range(2))
    assert first.losses == second.losses
    for name, layer in first.layers.items():
        assert torch.equal(layer.scale, second.layers[name].scale)
    assert torch.equal(first.norm_weights["norm.weight"], second.norm_weights["norm.weight"])


def test_steps_and_rates_are_those_of_adam(exact):
    """Scales and norms after 25 steps against Adam written out in float64."""
    layer = random_layer((6, 20), 3, 8, False, torch.float32)
    norm = torch.linspace(0.5, 2, 20)
    rows = torch.randn(5, 20, generator=torch.Generator().manual_seed(1))
    target = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.Module(), nn.Linear(20, 6, bias=False)
            self.norm.weight = nn.Parameter(norm.clone())

        def forward(self, rows):
            return self.linear(rows * self.norm.weight)

    tuned = tune(
        Scaled(),
        {"linear": layer},
        Rates(scale=0.03, norm=0.05),
        25,
        lambda call, _: (call(rows) - target).square().mean(),
        name="scaled",
    )
    scale, expected_norm, losses = oracles.adam_refit(
        layer.codes, layer.scale, layer.zero, 8, norm, rows, target, (0.03, 0.05), 25
    )
    # Adam divides by a root of the gradient: its float32 errors enter relative to a rate
    assert tuned.losses == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(tuned.layers["linear"].scale.double(), scale, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        tuned.norm_weights["norm.weight"].double(), expected_norm, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nonfinite_loss_names_module_and_step(toy, bad):
    def loss(call, step):
        return call(torch.ones(1, 1, 16)).sum() * (bad if step == 2 else 1.0)

    with pytest.raises(NumericalError, match=rf"model\.layers\.7: .* step 2 is -?{bad}"):
        tune(toy, rounded(toy), Rates(scale=0.01, norm=0.01), 5, loss, name="model.layers.7")


NORMS_OF_A_BLOCK = {
    "llama": {"input_layernorm", "post_attention_layernorm"},
    "qwen3": {
        "input_layernorm",
        "post_attention_layernorm",
        "self_attn.q_norm",
        "self_attn.k_norm",
    },
    "gemma2": {
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    },
    "opt": {"self_attn_layer_norm", "final_layer_norm"},
}


@pytest.mark.parametrize("architecture", NORMS_OF_A_BLOCK)
def test_weights_of_all_norms_are_listed(architecture):
    model = tiny_model(architecture, layers=1)
    block = (model.model.decoder if architecture == "opt" else model.model).layers[0]
    actual = norm_weights(block)
    assert actual.keys() == {f"{name}.weight" for name in NORMS_OF_A_BLOCK[architecture]}
    for name, norm in actual.items():
        assert torch.equal(norm, block.get_parameter(name)) and not norm.requires_grad
    whole = norm_weights(model)
    assert len(whole) == len(actual) + 1  # and the last norm


def near_ones(hidden):
    return lambda call, step: (call(hidden).float() - 1).square().mean()


class OnePlus(nn.LayerNorm):
    """A norm that multiplies with 1 + weight, as Gemma's."""

    def forward(self, hidden):
        return nn.functional.layer_norm(hidden, (16,), 1 + self.weight, self.bias)


def test_norms_of_1_plus_weight_are_tuned_as_others_are(toy):
    """Relative to the weight itself a 0 would never move."""
    nn.init.uniform_(toy.norm.weight[:8], 1.0, 1.0)
    other = deepcopy(toy)
    other.norm = OnePlus(16)
    other.norm.load_state_dict(toy.norm.state_dict())
    with torch.no_grad():
        other.norm.weight -= 1
    layers = rounded(toy)
    plain, offset = (tuned_toy(x, layers=layers, scale=0.0, norm=0.02) for x in (toy, other))
    gains = plain.norm_weights["norm.weight"]
    assert (gains[:8] - 1).abs().min() > 1e-4
    torch.testing.assert_close(offset.norm_weights["norm.weight"] + 1, gains, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_tuned_keeps_its_dtype(toy, dtype):
    layers, half = rounded(toy, dtype=dtype), deepcopy(toy).to(dtype)
    hidden = torch.randn(2, 4, 16).to(dtype)
    rates = Rates(scale=0.05, norm=0.05)
    tuned = tune(half, layers, rates, 4, near_ones(hidden), name="toy")
    assert {layer.scale.dtype for layer in tuned.layers.values()} == {dtype}
    assert tuned.norm_weights["norm.weight"].dtype == dtype
    assert not torch.equal(tuned.norm_weights["norm.weight"], half.norm.weight)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_biases_of_norms_go_with_their_gains(toy, monkeypatch, dtype, fast):
    """layer_norm refuses a norm weight in float32 beside a bias in half precision."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    layers, half = rounded(toy, dtype=dtype), deepcopy(toy).to(dtype)
    hidden = torch.randn(2, 4, 16).to(dtype)
    for norm in (0.05, 0.0):
        rates = Rates(scale=0.05, norm=norm)
        tuned = tune(half, layers, rates, 8, near_ones(hidden), name="toy")
        assert tuned.losses[-1] < tuned.losses[0]


@pytest.mark.parametrize(
    ("own", "fast", "given", "multiplied"),
    [
        (torch.float32, True, torch.bfloat16, torch.bfloat16),
        (torch.float32, False, torch.float32, torch.float32),
        (torch.bfloat16, False, torch.bfloat16, torch.bfloat16),
        (torch.float16, False, torch.bfloat16, torch.float16),
    ],
)
def test_products_are_fast_or_exact(toy, monkeypatch, own, fast, given, multiplied):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    module = toy.to(own)
    assert fast_dtype(module) == given
    with in_fast_dtype(module):
        x = torch.ones(2, 2, dtype=own)
        assert (x @ x).dtype == multiplied


@pytest.mark.parametrize(("count", "steps"), [(5, 17), (8, 3), (1, 4), (6, 6)])
def test_every_window_comes_once_before_any_comes_twice(count, steps):
    order = shuffled(count, steps, 3)
    assert len(order) == steps
    for start in range(0, steps, count):
        part = order[start : start + count]
        assert len(set(part)) == len(part) and set(part) <= set(range(count))


def test_the_order_depends_on_the_seed_alone():
    assert shuffled(20, 60, 3) == shuffled(20, 60, 3) != shuffled(20, 60, 4)
    order = shuffled(20, 60, 3)
    assert order[:20] != order[20:40] and order[:20] != list(range(20))
    torch.manual_seed(9)
    torch.rand(3)
    assert shuffled(20, 60, 3) == order


def test_a_norm_of_constants_has_no_weight():
    """FalconMamba's norms of B, C and dt are made so."""
    constant, norm = nn.Module(), nn.LayerNorm(4)
    constant.weight = nn.Buffer(torch.ones(4))
    module = nn.ModuleDict({"constant": constant, "norm": norm})
    assert norm_weights(module).keys() == {"norm.weight"}


def test_blocks_that_are_not_loaded_tell_no_device():
    """A model may have its blocks before its embeddings."""
    model = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Embedding(3, 2))
    with in_fast_dtype(model):
        assert model[1](torch.tensor([0])).shape == (1, 2)
    assert fast_dtype(model) == fast_dtype(model[1])
