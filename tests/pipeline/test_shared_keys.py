"""Models whose last blocks read keys and values of earlier ones (Gemma 3n, Gemma 4)."""

import pytest
import torch
from pipeline.plain_loop import CrossMethod, input_of, run_loop, token_windows
from tiny import SHARED_KEYS, tiny_model

from q2n.linalg.required_statistics import RequiredStatistics
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.models.targets import targets_in
from q2n.pipeline.store import RunStore
from q2n.refit.block import BlockRefit
from q2n.refit.tuner import Rates


def shared(architecture: str):
    return tiny_model(architecture, layers=4)


class Watched(GPTQ):
    """GPTQ that keeps the statistics of both streams."""

    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # noqa: RUF012

    @property
    def required_statistics(self) -> RequiredStatistics:
        return RequiredStatistics.GRAM | RequiredStatistics.CROSS

    def quantize(self, problem):
        self.seen[problem.name] = problem.statistics.gram.clone(), problem.statistics.cross.clone()
        return super().quantize(problem)


def assembled(architecture: str, layers):
    """The whole model with these layers."""
    model = shared(architecture)
    targets = targets_in(model)
    with torch.no_grad():
        for name, layer in layers.items():
            targets[name].set(layer.dequantize())
    return model


@pytest.mark.parametrize("activations", ["device", "cpu", "disk"])
@pytest.mark.parametrize("architecture", SHARED_KEYS)
def test_each_stream_is_its_model_in_every_block(tmp_path, architecture, activations):
    """Down projections come after attention, so all that is quantized before them is seen."""
    method = Watched(bits=3)
    layers = run_loop(
        shared(architecture), method, tmp_path, activations=activations, cross_tokens=0
    )
    quantized, original = assembled(architecture, layers), shared(architecture)
    for index in range(4):
        name = f"model.layers.{index}.mlp.down_proj"
        x, full = input_of(quantized, name).double(), input_of(original, name).double()
        gram, cross = Watched.seen[name]
        torch.testing.assert_close(gram.double(), x.T @ x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cross.double(), full.T @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [RTN(bits=3), GPTQ(bits=3), CrossMethod(bits=3)], ids=type)
@pytest.mark.parametrize("architecture", SHARED_KEYS)
@pytest.mark.parametrize("done", [1, 3])
def test_resuming_gives_the_same_bytes(tmp_path, architecture, method, done):
    resumed_equals_whole(tmp_path, architecture, method, done)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARED_KEYS)
def test_resuming_a_refit_gives_the_same_bytes(tmp_path, architecture):
    refit = BlockRefit(steps=4, rates=Rates(scale=0.01, norm=0.01))
    resumed_equals_whole(tmp_path, architecture, RTN(bits=3), 3, refit=refit)


def resumed_equals_whole(place, architecture, method, done, **settings):
    whole, broken = place / "whole", place / "broken"
    run_loop(shared(architecture), method, whole, **settings)
    run_loop(shared(architecture), method, broken, **settings)
    for index in range(done, 4):
        for suffix in (".json", ".safetensors"):
            (broken / f"block-{index:05d}{suffix}").unlink()
    run_loop(shared(architecture), method, broken, finished=done, **settings)
    for index in range(4):
        name = f"block-{index:05d}.safetensors"
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARED_KEYS)
def test_a_refit_brings_predictions_nearer(tmp_path, architecture):
    """Of windows that are cut out of a batch, their keys and values too."""
    tokens = token_windows().tokens
    refit = BlockRefit(steps=24, rates=Rates(scale=0.01, norm=0.01))

    def error(folder, **settings) -> float:
        layers = run_loop(shared(architecture), RTN(bits=2), tmp_path / folder, **settings)
        model = assembled(architecture, layers)
        with torch.no_grad():
            for name, weight in RunStore(tmp_path / folder).norm_weights().items():
                model.get_parameter(name).copy_(weight)
            expected = shared(architecture)(input_ids=tokens).logits
            return float((model(input_ids=tokens).logits - expected).square().mean())

    assert error("refitted", refit=refit) < 0.9 * error("plain")
