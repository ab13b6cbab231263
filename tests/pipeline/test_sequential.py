"""The block loop against a plain version: hooks on the whole model, one linear after another."""

import pytest
import torch
from pipeline.plain_loop import (
    REFIT,
    CrossMethod,
    input_of,
    plain_weights,
    run_loop,
    stored_weight,
    token_windows,
)
from safetensors.torch import load_file
from tiny import ARCHITECTURES, TRANSPOSED, tiny_model
from transformers.pytorch_utils import Conv1D

from q2n.errors import InputError, NumericalError
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.wrappers.nullspace import NullSpace


def llama_stages(layers: int) -> list[list[str]]:
    return [
        [f"model.layers.{i}.{name}" for name in stage]
        for i in range(layers)
        for stage in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.o_proj",),
            ("mlp.gate_proj", "mlp.up_proj"),
            ("mlp.down_proj",),
        )
    ]


@pytest.mark.parametrize("activations", ["device", "disk"])
def test_true_sequential_equals_the_plain_loop(tmp_path, activations):
    method = NullSpace(inner=GPTQ(bits=3))
    layers = run_loop(tiny_model(), method, tmp_path, activations=activations)
    expected = plain_weights(tiny_model(), method, llama_stages(3))
    assert set(layers) == {name for stage in llama_stages(3) for name in stage}
    for name, layer in layers.items():
        torch.testing.assert_close(
            layer.dequantize(), expected.get_submodule(name).weight.data, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("refit", [False, True])
def test_gpt2_equals_the_plain_loop(tmp_path, refit):
    """Its weights are stored [in, out]."""
    method, model = GPTQ(bits=3), tiny_model("gpt2", layers=1)
    layers = run_loop(model, method, tmp_path, refit=REFIT if refit else None)
    names = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    stages = [[f"transformer.h.0.{name}"] for name in names]
    expected = plain_weights(tiny_model("gpt2", layers=1), method, stages)
    assert [layer.shape for layer in layers.values()] == [(192, 64), (64, 64), (96, 64), (64, 96)]
    for [name] in stages:
        weight = stored_weight(expected, name)
        if refit:  # of other scales, on the same codes
            assert torch.cosine_similarity(layers[name].dequantize(), weight).min() > 0.99
        else:
            torch.testing.assert_close(layers[name].dequantize(), weight, rtol=0, atol=1e-6)


def test_without_true_sequential_inputs_are_full_precision(tmp_path):
    method, layers = GPTQ(bits=3), {}
    actual = run_loop(tiny_model(), method, tmp_path, true_sequential=False)
    model = tiny_model()
    for i in range(3):
        stages = llama_stages(3)[4 * i : 4 * i + 4]
        copies = [plain_weights(_copy(model), method, [stage]) for stage in stages]
        for stage, copy in zip(stages, copies, strict=True):
            for name in stage:
                layers[name] = copy.get_submodule(name).weight.data
        for name, weight in layers.items():
            model.get_submodule(name).weight.data.copy_(weight)
    for name, layer in actual.items():
        torch.testing.assert_close(layer.dequantize(), layers[name], rtol=0, atol=1e-6)


def _copy(model):
    copied = tiny_model()
    copied.load_state_dict(model.state_dict())
    return copied


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *TRANSPOSED])
def test_every_architecture_is_quantized_completely(architecture, tmp_path):
    model = tiny_model(architecture, layers=2)
    linears = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and any(char.isdigit() for char in name)
    }
    layers = run_loop(model, GPTQ(bits=4), tmp_path)
    assert set(layers) == linears
    for layer in layers.values():
        assert 0 < layer.record["output_error"] < 0.05


def test_rtn_needs_no_text(tmp_path):
    store = RunStore(tmp_path)
    store.start({}, {}, resume=False)
    model = tiny_model()
    SequentialLoop(BlockwiseModel(open_source(model)), RTN(bits=4), store, LoopOptions()).run(None)
    layers = store.layers()
    assert len(layers) == 21
    name = "model.layers.2.mlp.down_proj"
    weight = model.get_submodule(name).weight
    assert (layers[name].dequantize() - weight).abs().max() < weight.abs().max() / 7


def test_gptq_without_text_is_refused(tmp_path):
    store = RunStore(tmp_path)
    loop = SequentialLoop(
        BlockwiseModel(open_source(tiny_model())), GPTQ(bits=4), store, LoopOptions()
    )
    with pytest.raises(InputError, match="--corpus"):
        loop.run(None)


@pytest.mark.parametrize("done", [1, 2])
def test_resuming_gives_the_same_bytes(tmp_path, done):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    method = NullSpace(inner=GPTQ(bits=3))
    run_loop(tiny_model(), method, whole)
    run_loop(tiny_model(), method, broken)
    for index in range(done, 3):
        for suffix in (".json", ".safetensors"):
            (broken / f"block-{index:05d}{suffix}").unlink()
    run_loop(tiny_model(), method, broken, finished=done)
    for index in range(3):
        name = f"block-{index:05d}.safetensors"
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


@pytest.mark.parametrize("finished", [0, 1])
def test_the_second_stream_is_the_full_precision_model(tmp_path, finished):
    method = CrossMethod(bits=3)
    CrossMethod.seen.clear()
    layers = run_loop(tiny_model(), method, tmp_path)
    if finished:
        (tmp_path / "block-00002.json").unlink()
        (tmp_path / "block-00001.json").unlink()
        CrossMethod.seen.clear()
        run_loop(tiny_model(), method, tmp_path, finished=1)
    name = "model.layers.2.mlp.down_proj"
    full, quantized = tiny_model(), tiny_model()
    for other, layer in layers.items():
        if other != name:
            quantized.get_submodule(other).weight.data.copy_(layer.dequantize())
    inputs = [input_of(model, name) for model in (full, quantized)]
    expected = inputs[0].T @ inputs[1]
    # float32 sums of about 100 products each, in another order
    torch.testing.assert_close(CrossMethod.seen[name], expected, rtol=1e-4, atol=1e-4)


def test_cross_moments_of_long_text_are_thinned(tmp_path):
    """By every site's own width, and not at all where the text is short or nothing was asked."""
    options = LoopOptions(cross_tokens=4)
    assert [options.cross_stride(1024, width) for width in (16, 64, 100, 400)] == [16, 4, 2, 1]
    assert LoopOptions().cross_stride(10**6, 16) == 1
    with pytest.raises(InputError, match="cross_tokens"):
        LoopOptions(cross_tokens=-1)
    seen, windows = {}, token_windows(count=24, length=32)
    for tokens in (0, 1):
        CrossMethod.seen.clear()
        folder = tmp_path / str(tokens)
        method = CrossMethod(bits=3)
        run_loop(tiny_model(), method, folder, windows=windows, cross_tokens=tokens)
        seen[tokens] = dict(CrossMethod.seen)
    first = "model.layers.0.self_attn.q_proj"  # nothing is quantized yet: no residual
    torch.testing.assert_close(seen[0][first], seen[1][first], rtol=1e-4, atol=1e-4)
    last = "model.layers.2.mlp.down_proj"
    assert not torch.allclose(seen[0][last], seen[1][last], rtol=1e-3)


def test_activations_that_overflow_are_named(tmp_path):
    model = tiny_model().half()
    model.model.layers[1].mlp.up_proj.weight.data.fill_(3e4)
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.down_proj"):
        run_loop(model, GPTQ(bits=8), tmp_path)


def test_disk_activations_are_cleared_away(tmp_path):
    run_loop(tiny_model(), GPTQ(bits=4), tmp_path, activations="disk")
    assert not (tmp_path / "activations").exists() or not list(
        (tmp_path / "activations").rglob("*.safetensors")
    )
    assert load_file(tmp_path / "block-00000.safetensors")
