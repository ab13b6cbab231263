"""Refit of a whole model toward its own full-precision predictions."""

import pytest
import torch
from tiny import SHARED_KEYS
from tiny import tiny_model as sized_model
from torch.nn.functional import kl_div

from q2n.errors import InputError, NumericalError
from q2n.method import LayerProblem
from q2n.methods.rtn import RTN
from q2n.models.targets import targets_in
from q2n.refit.model import ModelRefit
from q2n.refit.tuner import CHECKED, Rates, norm_weights

pytestmark = pytest.mark.slow


@pytest.fixture
def exact(monkeypatch):
    """Matrix products in float32, on a machine that is fast in bfloat16 too."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)


def tiny_model(architecture: str = "llama"):
    return sized_model(architecture, layers=4 if architecture in SHARED_KEYS else 2)


def tokens(count: int = 9, length: int = 16) -> torch.Tensor:
    return torch.randint(3, 128, (count, length), generator=torch.Generator().manual_seed(3))


def rounded(model, bits=2):
    """The linears of the decoder blocks, by full name."""
    return {
        name: RTN(bits=bits).quantize(
            LayerProblem(name=name, weight=target.weight(), statistics=None)
        )
        for name, target in targets_in(model).items()
        if any(char.isdigit() for char in name)
    }


def refitted(model, layers, norms=None, steps=10, progress=lambda: None):
    refit = ModelRefit(steps=steps, rates=Rates(scale=0.01, norm=0.01))
    return refit(model, layers, norms or {}, tokens(), progress=progress)


def divergence(architecture, layers, norms, windows) -> float:
    """Mean KL over tokens from full float32 logits."""
    plain, changed = tiny_model(architecture), tiny_model(architecture)
    with torch.no_grad():
        for name, layer in layers.items():
            targets_in(changed)[name].set(layer.dequantize())
        for name, norm in norms.items():
            changed.get_parameter(name).copy_(norm)
        log_p, log_s = (
            model(input_ids=windows, use_cache=False).logits.double().log_softmax(-1)
            for model in (plain, changed)
        )
    each = kl_div(log_s, log_p, log_target=True, reduction="none").sum(-1)
    return float(each.mean())


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen3", "opt", "gpt_neox", "gpt2", *SHARED_KEYS]
)
def test_predictions_come_nearer(architecture):
    layers = rounded(tiny_model(architecture))
    tuned = refitted(tiny_model(architecture), layers, steps=15)
    assert tuned.layers.keys() == layers.keys()
    before = divergence(architecture, layers, {}, tokens())
    after = divergence(architecture, tuned.layers, tuned.norm_weights, tokens())
    assert after < 0.95 * before
    assert len(tuned.losses) == 15


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_all_names_are_the_models_own(architecture):
    model = tiny_model(architecture)
    tuned = refitted(model, rounded(model), steps=2)
    assert tuned.norm_weights.keys() == norm_weights(model).keys()
    last = "model.norm.weight" if architecture == "llama" else "model.decoder.final_layer_norm"
    assert any(name.startswith(last) for name in tuned.norm_weights)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("with_norms", [False, True])
def test_the_first_loss_is_the_initial_divergence(exact, architecture, with_norms):
    """The teacher is the model with its original norms, also where other ones are given."""
    layers, norms = rounded(tiny_model(architecture)), {}
    if with_norms:
        generator = torch.Generator().manual_seed(2)
        norms = {
            name: norm * (0.5 + torch.rand(norm.shape, generator=generator))
            for name, norm in norm_weights(tiny_model(architecture)).items()
        }
    tuned = refitted(tiny_model(architecture), layers, norms, steps=1)
    first = divergence(architecture, layers, norms, tokens()[:1])
    assert tuned.losses[0] == pytest.approx(first, rel=1e-4)
    checked = divergence(architecture, layers, norms, tokens()[-CHECKED:])
    assert tuned.change[0] == pytest.approx(checked, rel=1e-4)
    for name, norm in norms.items():  # and they are where the steps start
        assert (tuned.norm_weights[name] / norm - 1).abs().max() < 0.011


def test_no_step_sees_the_windows_of_the_check(exact):
    """Other windows there change the check, and nothing of what is learned."""
    layers = rounded(tiny_model())
    refit, text = ModelRefit(steps=6, rates=Rates(scale=0.01, norm=0.01)), tokens()
    other = torch.cat([text[:-CHECKED], text[-CHECKED:].flip(1)])
    first, second = (
        refit(tiny_model(), layers, {}, windows, progress=lambda: None) for windows in (text, other)
    )
    assert first.losses == second.losses and first.change[0] != second.change[0]
    assert refit.windows == 6 + CHECKED


def test_norms_of_several_blocks_stay():
    """Zamba 2's transformer block is at two depths: two weights would be learned, and one
    stored."""
    model = sized_model("zamba2", layers=4)
    layers = {name: x for name, x in rounded(model).items() if "shared_" not in name}
    refit = ModelRefit(steps=1)
    tuned = refit(model, layers, {}, tokens(CHECKED + 1, 8), progress=lambda: None)
    assert len(tuned.norm_weights) == 9
    assert not [name for name in tuned.norm_weights if "shared_" in name]


def test_codes_stay_and_so_does_the_model():
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = rounded(model)
    tuned = refitted(model, layers, steps=3)
    for name, layer in layers.items():
        assert torch.equal(tuned.layers[name].codes, layer.codes)
        assert not torch.equal(tuned.layers[name].scale, layer.scale)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_runs_repeat_bit_for_bit():
    layers, calls = rounded(tiny_model()), []
    first = refitted(tiny_model(), layers, steps=4, progress=lambda: calls.append(1))
    second = refitted(tiny_model(), layers, steps=4)
    assert len(calls) == 4 and first.losses == second.losses
    assert all(torch.equal(first.layers[n].scale, second.layers[n].scale) for n in layers)
    assert all(
        torch.equal(first.norm_weights[n], second.norm_weights[n]) for n in first.norm_weights
    )


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "opt"])
def test_models_in_half_precision_are_refitted(monkeypatch, architecture, dtype, fast):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    model = tiny_model(architecture).to(dtype)
    layers = rounded(model)
    tuned = refitted(model, layers, steps=15)
    assert {norm.dtype for norm in tuned.norm_weights.values()} == {dtype}
    # of windows that come three times each
    assert sum(tuned.losses[10:]) < sum(tuned.losses[:5])


def test_a_nan_names_the_model():
    model = tiny_model()
    layers = rounded(model)
    model.model.embed_tokens.weight.data[:] = float("nan")
    with pytest.raises(NumericalError, match="LlamaForCausalLM: .*nan"):
        refitted(model, layers)


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="refit_steps must be at least 1, got -3"):
        ModelRefit(steps=-3)


@pytest.mark.gpu
def test_stored_layers_are_brought_to_the_models_device():
    layers = rounded(tiny_model())
    tuned = refitted(tiny_model().cuda(), layers, steps=10)
    assert sum(tuned.losses[5:]) < sum(tuned.losses[:5])
    assert all(layer.codes.is_cuda for layer in tuned.layers.values())
