"""compressed-tensors with inputs of 8 bits: transformers rounds as it should, and so do we."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from formats.tiny_models import PROMPT, llama, quantized_in_memory, random_layers
from safetensors.torch import load_file
from tiny import save_tiny
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import q2n
from q2n.errors import InputError
from q2n.formats.choice import choose_format
from q2n.formats.load import load_model
from q2n.grids.per_token import TokenGrid
from q2n.layers.uniform import UniformStorage
from q2n.models.rotated_source import changed_source
from q2n.models.rounded_linears import rounded_linears
from q2n.models.source import open_source
from q2n.models.targets import LayerFilter
from q2n.transforms.model_changes import ModelChanges


def written(out: Path, bits: int, group_size: int, format: str = "compressed-tensors") -> Path:
    model = llama()
    storage = UniformStorage(bits=bits, group_size=group_size, symmetric=True)
    changes = ModelChanges(activation_bits=8, activation_clip_ratio=1.0)
    chosen = choose_format(format, "rtn", storage, activations=changes.activations)
    source = changed_source(open_source(model), changes, 0)
    chosen.write(out, source, random_layers(model, bits, group_size, True, torch.float16))
    return out


def as_the_library_rounds(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Step 2 m / 255, m the largest number of each token; codes -128 .. 127."""
    step = inputs[0].abs().amax(-1, keepdim=True) / 127.5
    return ((inputs[0] / step).round().clamp(-128, 127) * step,)


GRIDS = [(8, -1), (4, -1), (4, 32)]


@pytest.mark.parametrize(("bits", "group_size"), GRIDS)
@torch.inference_mode()
def test_transformers_rounds_weights_and_inputs(tmp_path: Path, bits: int, group_size: int) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(written(tmp_path / "out", bits, group_size))
    layers = random_layers(llama(), bits, group_size, True, torch.float16)
    expected = quantized_in_memory(llama(), layers)
    plain = expected(PROMPT).logits
    for name in layers:
        expected.get_submodule(name).register_forward_pre_hook(as_the_library_rounds)
    logits = expected(PROMPT).logits
    bound = 1e-5 * logits.abs().max()
    assert (loaded(PROMPT).logits - logits).abs().max() < bound
    assert (plain - logits).abs().max() > 100 * bound  # rounded inputs are seen


@pytest.mark.parametrize(("bits", "group_size"), GRIDS)
@torch.inference_mode()
def test_our_reader_loads_what_native_holds(tmp_path: Path, bits: int, group_size: int) -> None:
    ours = load_model(written(tmp_path / "out", bits, group_size))
    native = load_model(written(tmp_path / "native", bits, group_size, "native"))
    assert torch.equal(ours(PROMPT).logits, native(PROMPT).logits)


def test_eight_bits_are_bytes_around_zero(tmp_path: Path) -> None:
    folder = written(tmp_path / "out", 8, -1)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert config["format"] == group["format"] == "int-quantized" and "runtime" not in config
    assert group["input_activations"] == {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "dynamic": True,
    }
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    weight, scale = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"]
    layer = random_layers(llama(), 8, -1, True, torch.float16)[name]
    assert weight.dtype == torch.int8 and scale.shape == (len(weight), 1)
    assert torch.equal(weight.float() * scale.float(), layer.dequantize())


STORAGE = UniformStorage(bits=8, group_size=-1, symmetric=True)
GRID = TokenGrid(bits=8)


@pytest.mark.parametrize(
    ("storage", "grid", "words"),
    [
        ({}, {"bits": 4}, "4 bits of the inputs; set activation_bits to 8"),
        ({}, {"symmetric": False}, "leave activation_symmetric out"),
        ({}, {"group_size": 32}, "leave activation_group_size out"),
        ({}, {"clip": 0.9}, "0.9 of their range; set activation_clip_ratio to 1"),
        ({"bits": 3}, {}, "weights of 3 bits"),
        ({"symmetric": False}, {}, "add --symmetric"),
        ({"group_size": 64}, {}, "8-bit weights in groups of 64; set group_size to -1"),
    ],
)
def test_what_readers_do_not_run_is_refused(storage: dict, grid: dict, words: str) -> None:
    with pytest.raises(InputError, match=f"{words}.*, or use --format native$"):
        choose_format(
            "compressed-tensors",
            "rtn",
            replace(STORAGE, **storage),
            activations=replace(GRID, **grid),
        )


@pytest.mark.parametrize("name", ["gptq_v2", "dequantized", "mlx"])
def test_other_formats_name_those_that_round(name: str) -> None:
    with pytest.raises(InputError, match="--format compressed-tensors or native$"):
        choose_format(name, "rtn", STORAGE, activations=GRID)


def test_other_rounded_inputs_are_not_read(tmp_path: Path) -> None:
    folder = written(tmp_path / "out", 4, 32)
    config = json.loads((folder / "config.json").read_text())
    group = config["quantization_config"]["config_groups"]["group_0"]
    group["input_activations"]["num_bits"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="inputs of this group.*load it with transformers"):
        load_model(folder)


def test_a_run_writes_them(tmp_path: Path) -> None:
    q2n.quantize(
        save_tiny(tmp_path / "model"),
        tmp_path / "out",
        method="rtn",
        bits=8,
        group_size=-1,
        symmetric=True,
        activation_bits=8,
        activation_clip_ratio=1.0,
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "int-quantized"
    assert "rounded activations" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("architecture", ["gemma2", "phi3", "stablelm"])
@pytest.mark.parametrize("format", ["native", "compressed-tensors"])
@torch.inference_mode()
def test_any_architecture_rounds_them(tmp_path: Path, architecture: str, format: str) -> None:
    """Not only decoders that can be rotated."""
    save_tiny(tmp_path / "model", architecture)
    settings = {"method": "rtn", "bits": 8, "group_size": -1, "symmetric": True}
    rounding = {"activation_bits": 8, "activation_clip_ratio": 1.0}
    q2n.quantize(tmp_path / "model", tmp_path / "plain", format="dequantized", **settings)
    out = tmp_path / "out"
    done = q2n.quantize(tmp_path / "model", out, format=format, **settings, **rounding)
    expected = load_model(tmp_path / "plain")
    plain = expected(PROMPT).logits
    ours = format == "native"
    hook = as_we_round if ours else as_the_library_rounds
    for name in done.record["layers"]:
        expected.get_submodule(name).register_forward_pre_hook(hook)
    logits = expected(PROMPT).logits
    loaded = load_model(out) if ours else AutoModelForCausalLM.from_pretrained(out)
    assert (plain - logits).abs().max() > 0.01
    torch.testing.assert_close(loaded(PROMPT).logits, logits, rtol=0, atol=1e-4)


def as_we_round(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Step m / 127, as vLLM."""
    step = inputs[0].abs().amax(-1, keepdim=True) / 127
    return ((inputs[0] / step).round() * step,)


def test_inputs_of_experts_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "qwen3_moe")
    with pytest.raises(InputError, match="inputs of experts.*leave out --activation-bits"):
        q2n.quantize(
            tmp_path / "model", tmp_path / "out", method="rtn", bits=8, format="native",
            activation_bits=8,
        )  # fmt: skip


def test_patterns_fit_nothing_else(tmp_path: Path) -> None:
    """A linear that is left out, and one whose name ends alike, keep their inputs."""
    model = open_source(save_tiny(tmp_path / "model", layers=2)).skeleton()
    names = rounded_linears(model, LayerFilter(ignore=("*.1.mlp.up_proj",)), GRID)
    assert "model.layers.*.mlp.gate_proj" in names
    assert "model.layers.*.mlp.up_proj" not in names and "model.layers.0.mlp.up_proj" in names
    assert len(names) == 7
    with pytest.raises(InputError, match="48 do not divide.*model.layers.0.self_attn"):
        rounded_linears(model, LayerFilter(), replace(GRID, group_size=48))
