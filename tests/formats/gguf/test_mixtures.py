"""Mixtures of experts: every architecture, run by the real llama.cpp beside transformers."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from formats.gguf.checkpoints import (
    LAYERS,
    MIXTURES,
    gguf_format,
    in_blocks,
    rotary,
    save,
)
from formats.gguf.test_architectures import CLOSE, TOKENS, assert_close, true_logits, written
from llama_cpp import logits, needs_llama_cpp
from mixtures import matrices
from tiny import tiny_text

import q2n
from q2n.errors import InputError
from q2n.formats.gguf.header import read_header
from q2n.formats.load import load_model
from q2n.models.experts import one_by_one
from q2n.models.source import open_source

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
VARIANTS = {
    "mixtral llama3": (
        "mixtral",
        rotary(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "mixtral tied, one expert a token": (
        "mixtral",
        {"tie_word_embeddings": True, "num_experts_per_tok": 1},
    ),
    "qwen2 without biases": ("qwen2_moe", {"qkv_bias": False}),
    "qwen3 tied, yarn": ("qwen3_moe", {"tie_word_embeddings": True, **rotary(**_YARN)}),
    "olmoe linear": ("olmoe", rotary(rope_type="linear", factor=4.0)),
    "deepseek yarn": ("deepseek", rotary(**_YARN)),
    "deepseek2 yarn": ("deepseek_v2", rotary(**_YARN, mscale=0.707, mscale_all_dim=0.707)),
    "deepseek2 tied, queries without rank": (
        "deepseek_v2",
        {"tie_word_embeddings": True, "q_lora_rank": None},
    ),
    "deepseek2 scaled, no dense layer": (
        "deepseek_v2",
        {"routed_scaling_factor": 2.5, "first_k_dense_replace": 0, "n_shared_experts": 1},
    ),
}
EVERY = {"num_experts_per_tok": 4}
"""All experts: with activations of 8 bits others would be chosen now and then."""
WIDE = {"hidden_size": 256, "moe_intermediate_size": 256, "head_dim": 64, "layers": 1}
"""What blocks of 256 fill."""


def stacked(file: Path, name: str) -> gguf.ReaderTensor:
    """A tensor as gguf-py finds it."""
    return next(x for x in gguf.GGUFReader(file).tensors if x.name == name)


@needs_llama_cpp
@pytest.mark.parametrize("architecture", MIXTURES)
def test_llama_cpp_computes_the_model(tmp_path: Path, architecture: str) -> None:
    model = save(tmp_path / "model", architecture)
    assert_close(logits(written(tmp_path), TOKENS), true_logits(model), CLOSE)


@needs_llama_cpp
@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_computes_what_config_json_says(tmp_path: Path, variant: str) -> None:
    architecture, options = VARIANTS[variant]
    model = save(tmp_path / "model", architecture, **options)
    assert_close(logits(written(tmp_path), TOKENS), true_logits(model), CLOSE)


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "kind", "sizes"),
    [*((name, "q4_0", {}) for name in MIXTURES), ("qwen3_moe", "q4_k", WIDE)],
)
def test_llama_cpp_computes_with_stacks_of_blocks(
    tmp_path: Path, architecture: str, kind: str, sizes: dict
) -> None:
    model = save(tmp_path / "model", architecture, **EVERY, **sizes)
    file = written(tmp_path, kind, in_blocks(model, kind))
    off = logits(file, TOKENS) - true_logits(load_model(file.parent))
    assert off.std() < 0.05  # it rounds activations to 8 bits; logits are spread by 1


@pytest.mark.parametrize("architecture", MIXTURES)
def test_our_reader_gives_every_expert_back(tmp_path: Path, architecture: str) -> None:
    model = save(tmp_path / "model", architecture)
    back = load_model(written(tmp_path).parent)
    expected = dict(one_by_one(model).named_parameters())
    assert dict(back.named_parameters()).keys() == expected.keys()
    for name, parameter in expected.items():
        assert torch.equal(back.get_parameter(name), parameter), name


@pytest.mark.parametrize("architecture", MIXTURES)
def test_stacks_hold_experts_in_order(tmp_path: Path, architecture: str) -> None:
    model = save(tmp_path / "model", architecture)
    file, single = written(tmp_path), matrices(model)
    for kind in ("gate", "up", "down"):
        experts = [single[f"model.layers.1.mlp.experts.{i}.{kind}_proj.weight"] for i in range(4)]
        found = stacked(file, f"blk.1.ffn_{kind}_exps.weight")
        np.testing.assert_array_equal(found.data, torch.stack(experts).numpy())


def test_stacks_of_blocks_are_the_layers_one_by_one(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "qwen3_moe")
    layers = in_blocks(model, "q4_0")
    file = written(tmp_path, "f16", layers)
    found = stacked(file, "blk.1.ffn_down_exps.weight")
    assert found.tensor_type.name == "Q4_0"
    theirs = gguf.quants.dequantize(found.data, found.tensor_type)
    experts = [layers[f"model.layers.1.mlp.experts.{i}.down_proj"].dequantize() for i in range(4)]
    np.testing.assert_allclose(theirs, torch.stack(experts), rtol=1e-6)
    back = load_model(file.parent)
    for name, layer in layers.items():
        assert torch.equal(back.get_submodule(name).weight, layer.dequantize()), name


def test_what_chooses_experts_stays_exact(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "qwen2_moe", dtype=torch.bfloat16)
    source, container = open_source(tmp_path / "model"), gguf_format("q8_0").container
    assert container.check(source, LAYERS) == []
    assert "norms, biases and what chooses among experts in F32" in container.outside_types(source)
    layers = in_blocks(model.float(), "q4_0")
    tensors = read_header(written(tmp_path, "q8_0", layers)).tensors
    types = {name: place.kind.name for name, place in tensors.items()}
    assert types["blk.0.ffn_gate_inp.weight"] == types["blk.0.ffn_gate_inp_shexp.weight"] == "F32"
    assert types["blk.0.ffn_up_exps.weight"] == types["blk.0.ffn_up_shexp.weight"] == "Q4_0"
    stored = sum(x.stored_bits for x in layers.values())
    said = container.kept(source, layers).bits + stored
    assert container.tensor_bytes(tmp_path / "out") == said / 8


REFUSED = {
    "norm_topk_prob is False, and there it is True": ("qwen3_moe", {"norm_topk_prob": False}),
    "norm_topk_prob is True, and there it is False": ("olmoe", {"norm_topk_prob": True}),
    "1 experts in a layer": ("mixtral", {"num_experts": 1, "num_local_experts": 1}),
    "its head is the embeddings": ("qwen2_moe", {"tie_word_embeddings": True}),
    "clip_qkv is 8.0": ("olmoe", {"clip_qkv": 8.0}),
    "num_key_value_heads is 2, and there it is num_attention_heads": (
        "olmoe",
        {"num_key_value_heads": 2},
    ),
    "num_key_value_heads is 2, and there it is 4": ("deepseek_v2", {"num_key_value_heads": 2}),
    "'model.layers.1.mlp.gate_proj.weight' has no place in a qwen3moe": (
        "qwen3_moe",
        {"mlp_only_layers": [1]},
    ),
    "moe_layer_freq is 2": ("deepseek", {"moe_layer_freq": 2}),
    "it has no shared experts": ("deepseek", {"n_shared_experts": 0}),
    "chosen from 2 of 4 groups": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    ),
    "rms_norm_eps is 1e-05": ("deepseek_v2", {"rms_norm_eps": 1e-5}),
    "latent queries .* models of 26 layers have none": ("deepseek_v2", {"layers": 26}),
    "mscale None and mscale_all_dim None, and there they are one": (
        "deepseek_v2",
        rotary(**_YARN),
    ),
    "rope_type is .linear.": ("deepseek_v2", rotary(rope_type="linear", factor=4.0)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_other_mixtures_are_refused_before_any_work(tmp_path: Path, why: str) -> None:
    architecture, options = REFUSED[why]
    save(tmp_path / "model", architecture, **options)
    with pytest.raises(InputError, match=f"{why}.*use another --format"):
        gguf_format().container.check(open_source(tmp_path / "model"), LAYERS)


def quantize(place: Path, **settings):
    """A run that does as little as possible."""
    (place / "text.txt").write_text(tiny_text())
    given = {"windows": 4, "length": 16, "corpus": str(place / "text.txt"), "grid": "q4_0"}
    return q2n.quantize(place / "model", place / "out", format="gguf", **given, **settings)


def test_a_split_stack_is_refused_before_any_work(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "qwen3_moe")
    with pytest.raises(InputError, match=r"experts\.1\.gate_proj\.weight' would stay.*gate_proj'"):
        quantize(tmp_path, ignore=("*experts.1.*",))
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    layers = in_blocks(model, "q4_0")
    del layers["model.layers.1.mlp.experts.2.down_proj"]
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts\.2\.down_proj.*--ignore"):
        written(tmp_path, "f16", layers)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_whole_stack_may_be_left_out(tmp_path: Path) -> None:
    save(tmp_path / "model", "mixtral")
    quantize(tmp_path, ignore=("*experts.*.down_proj",))
    tensors = read_header(tmp_path / "out" / "model.gguf").tensors
    assert tensors["blk.1.ffn_down_exps.weight"].kind.name == "F16"
    assert tensors["blk.1.ffn_up_exps.weight"].kind.name == "Q4_0"


def test_another_number_of_experts_is_named(tmp_path: Path) -> None:
    save(tmp_path / "model", "qwen3_moe")
    folder = written(tmp_path).parent
    config = (folder / "config.json").read_text()
    assert '"num_local_experts": 4' in config
    (folder / "config.json").write_text(config.replace('_local_experts": 4', '_local_experts": 3'))
    with pytest.raises(InputError, match=r"gate_exps.*\(4, .* does not hold the 3 experts"):
        load_model(folder)
