"""The block loop with fits that a method asks for: ranges before rounding, factors after it."""

import pytest
import torch
from mixtures import tiny_mixture
from pipeline.plain_loop import run_loop, token_windows
from pipeline.test_sequential_refit import as_stored
from tiny import tiny_model

from q2n.disk.folders import MARKER
from q2n.methods.gptq import GPTQ
from q2n.methods.ptq161 import PTQ161
from q2n.methods.rtn import RTN
from q2n.pipeline import learn_ranges as module
from q2n.pipeline.store import RunStore
from q2n.rewrites.awq import AWQ
from q2n.wrappers.correction import InputErrorCorrection
from q2n.wrappers.output_scales import OutputScales

pytestmark = pytest.mark.slow
RANGES = {"bits": 2, "clip": "learned", "clip_epochs": 4, "clip_rate": 0.1}
FACTORS = PTQ161(fit_epochs=4, magnitude_rate=5e-3, factor_rate=1e-2)
GOOD = OutputScales(inner=InputErrorCorrection(inner=GPTQ(**RANGES)))


def last_output(model) -> torch.Tensor:
    with torch.no_grad():
        return model.base_model(token_windows().tokens, use_cache=False).last_hidden_state


@pytest.mark.parametrize(
    ("plain", "fitted"),
    [
        (RTN(bits=2), RTN(**RANGES)),
        (PTQ161(fit_epochs=1, magnitude_rate=1e-9, factor_rate=1e-9), FACTORS),
    ],
    ids=["ranges", "factors"],
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_fitted_blocks_bring_the_last_output_nearer(tmp_path, architecture, plain, fitted):
    full, errors = last_output(tiny_model(architecture, layers=2)), []
    for number, method in enumerate((plain, fitted)):
        folder = tmp_path / str(number)
        run_loop(tiny_model(architecture, layers=2), method, folder)
        model = as_stored(tiny_model(architecture, layers=2), folder)
        errors.append(float((last_output(model) - full).square().mean()))
    assert errors[1] < 0.9 * errors[0]
    for block in RunStore(tmp_path / "1").finished():
        before, after = block["fit_loss"]
        assert after < before


@pytest.mark.parametrize("method", [GOOD, FACTORS], ids=["ranges", "factors"])
def test_resuming_after_a_fit_gives_the_same_bytes(tmp_path, method):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_loop(tiny_model(), method, whole)
    broken.mkdir()
    for name in (MARKER, "run.json", "block-00000.json", "block-00000.safetensors"):
        (broken / name).write_bytes((whole / name).read_bytes())
    run_loop(tiny_model(), method, broken, finished=1)
    for index in range(3):
        name = f"block-{index:05d}.safetensors"
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


@pytest.mark.parametrize("method", [GPTQ(**RANGES), FACTORS], ids=["ranges", "factors"])
def test_experts_are_fitted_like_other_linears(tmp_path, method):
    layers = run_loop(tiny_mixture("qwen3_moe", layers=1), method, tmp_path)
    (block,) = RunStore(tmp_path).finished()
    before, after = block["fit_loss"]
    assert after < before
    assert any("experts" in name for name in layers)


@pytest.mark.parametrize("target", ["full_precision", "both"])
def test_ranges_are_learned_toward_the_unclamped_block(tmp_path, monkeypatch, target):
    """A rewrite clamps weights of the block that is quantized, not of the one to come near."""
    model, windows, learn = tiny_model(layers=1), [], module.learn_ranges

    def watched(block, forms, window, count, *rest, **names):
        windows.extend(map(window, range(count)))
        return learn(block, forms, window, count, *rest, **names)

    monkeypatch.setattr(module, "learn_ranges", watched)
    method = RTN(**{**RANGES, "clip_epochs": 1}, clip_target=target)
    run_loop(model, method, tmp_path, rewrite=AWQ(rewrite_windows=0, rewrite_clip=True))
    outputs = []
    model.model.layers[0].register_forward_hook(lambda *x: outputs.append(x[-1]))
    last_output(model)
    for number, window in enumerate(windows):
        assert len(window.targets) == (2 if target == "both" else 1)
        for goal in window.targets:  # the first block reads the same in both models
            torch.testing.assert_close(goal[0], outputs[0][number], rtol=1e-5, atol=1e-6)
