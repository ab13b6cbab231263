"""compressed-tensors files, read by transformers and by our own reader."""

import json
from pathlib import Path

import pytest
import torch
from formats.tiny_models import (
    assert_same_model,
    llama,
    quantized_in_memory,
    qwen2,
    random_layer,
    random_layers,
)
from safetensors.torch import load_file
from tiny import save_tiny
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import q2n
from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.formats.load import load_model
from q2n.models.source import open_source

FORMAT = FORMATS["compressed-tensors"]


def by_transformers(directory: Path):
    return AutoModelForCausalLM.from_pretrained(
        directory, quantization_config=CompressedTensorsConfig(dequantize=True)
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [-1, 32])
def test_transformers_reads_what_was_written(
    tmp_path: Path, bits: int, symmetric: bool, group_size: int
) -> None:
    # scale * (code - zero): |code - zero| <= 255 is exact in bfloat16, so the reader rounds
    # the product once, as we do: equal bit for bit.
    model = llama(dtype=torch.bfloat16)
    layers = random_layers(model, bits, group_size, symmetric, torch.bfloat16)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    expected = quantized_in_memory(model, layers)
    assert_same_model(by_transformers(tmp_path / "out"), expected)
    assert_same_model(load_model(tmp_path / "out"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("group_size", [-1, 4])
def test_sizes_that_fill_no_word(tmp_path: Path, dtype: torch.dtype, group_size: int) -> None:
    # transformers dequantizes in the dtype of the scales, and then casts to that of the model.
    model = llama(hidden=72, inner=100, tied=True, dtype=dtype)
    scale_dtype = FORMAT.codec.scale_dtype(dtype)
    layers = random_layers(model, 3, group_size, False, scale_dtype)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    expected = quantized_in_memory(model, layers)
    assert_same_model(load_model(tmp_path / "out"), expected)
    for name, layer in layers.items():
        weight = layer.dequantize().to(scale_dtype).to(dtype)
        expected.get_submodule(name).weight.data = weight
    assert_same_model(by_transformers(tmp_path / "out"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scales_take_16_bits_whatever_the_model(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = save_tiny(tmp_path / "model")
    done = q2n.quantize(
        folder, tmp_path / "out", method="rtn", bits=2, group_size=32, dtype=str(dtype)[6:]
    )
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    scales = [x for name, x in tensors.items() if name.endswith("weight_scale")]
    assert scales and {x.dtype for x in scales} == {FORMAT.codec.scale_dtype(dtype)}
    assert {x.element_size() for x in scales} == {2}
    assert done.record["bits_per_weight"] == 2 + (16 + 2) / 32


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [-1, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_plain_from_pretrained_loads(
    tmp_path: Path, bits: int, symmetric: bool, group_size: int, dtype: torch.dtype
) -> None:
    """In a float32 model the weights of an asymmetric checkpoint are rounded to the dtype of the
    scales first."""
    model, scale_dtype = llama(dtype=dtype), FORMAT.codec.scale_dtype(dtype)
    layers = random_layers(model, bits, group_size, symmetric, scale_dtype)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = quantized_in_memory(model, layers)
    for name, layer in layers.items():
        if not symmetric:
            weight = layer.dequantize().to(scale_dtype).to(dtype)
            expected.get_submodule(name).weight.data = weight
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, expected(tokens).logits)


def test_device_maps_and_saving_again(tmp_path: Path) -> None:
    model = llama(dtype=torch.bfloat16)
    layers = random_layers(model, 4, 32, False, torch.bfloat16)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    expected = quantized_in_memory(model, layers)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="auto")
    assert_same_model(loaded, expected)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    loaded.save_pretrained(tmp_path / "again")
    assert_same_model(AutoModelForCausalLM.from_pretrained(tmp_path / "again"), expected)


def test_biases_and_tied_embeddings(tmp_path: Path) -> None:
    model = qwen2(torch.bfloat16)
    layers = random_layers(model, 4, 32, False, torch.bfloat16)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    for loaded in (by_transformers(tmp_path / "out"), load_model(tmp_path / "out")):
        assert_same_model(loaded, quantized_in_memory(model, layers))
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_linear_left_alone_is_ignored_by_readers(tmp_path: Path) -> None:
    model = llama(dtype=torch.bfloat16)
    layers = random_layers(model, 4, 32, True, torch.bfloat16)
    del layers["model.layers.0.mlp.down_proj"]
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["model.layers.0.mlp.down_proj", "lm_head"]
    assert_same_model(by_transformers(tmp_path / "out"), quantized_in_memory(model, layers))


def test_the_printed_example_loads(tmp_path: Path) -> None:
    model = llama(dtype=torch.bfloat16)
    layers = random_layers(model, 3, -1, False, torch.bfloat16)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    names: dict = {}
    exec(FORMAT.container.loading_example(tmp_path / "out"), names)
    assert_same_model(names["model"], quantized_in_memory(model, layers))


def test_refusals() -> None:
    with pytest.raises(InputError, match="q_proj has 576 inputs.*groups of 128"):
        FORMAT.codec.check_grid("q_proj", (64, 576), bits=4, group_size=128)
    with pytest.raises(InputError, match="2 to 8 bits"):
        FORMAT.codec.check_grid("q_proj", (64, 576), bits=1, group_size=-1)
    ragged = random_layer((64, 80), 4, 32, False, torch.float32)
    with pytest.raises(InputError, match="short last group"):
        FORMAT.codec.encode("q_proj", ragged, torch.float32)
    layer = random_layer((64, 64), 4, 32, False, torch.float32)
    with pytest.raises(InputError, match="leave the range of torch.float16"):
        FORMAT.codec.encode("q_proj", layer.scale_rows(torch.full((64,), 1e7)), torch.float16)
    with pytest.raises(InputError, match="leave the range of torch.float16"):
        FORMAT.codec.encode("q_proj", layer.scale_rows(torch.full((64,), 1e-9)), torch.float16)


@pytest.mark.parametrize("symmetric", [True, False])
def test_mixed_grids_are_symmetric(tmp_path: Path, symmetric: bool) -> None:
    model = llama(dtype=torch.bfloat16)
    layers = random_layers(model, 4, 32, symmetric, torch.bfloat16)
    name = "model.layers.1.mlp.up_proj"
    layers[name] = random_layer(layers[name].shape, 3, 32, symmetric, torch.bfloat16)
    if not symmetric:
        with pytest.raises(InputError, match="symmetric grids only"):
            FORMAT.write(tmp_path / "out", open_source(model), layers)
        assert list(tmp_path.iterdir()) == []
        return
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    expected = quantized_in_memory(model, layers)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, expected(tokens).logits)
    assert_same_model(load_model(tmp_path / "out"), expected)


@pytest.mark.parametrize(
    ("targets", "words"),
    [(["Linear"], "names of layers"), (["re:.*up_proj"], "names of layers"), ([], "among its")],
)
def test_groups_that_do_not_name_their_layers_are_refused(
    tmp_path: Path, targets: list[str], words: str
) -> None:
    model = llama(dtype=torch.bfloat16)
    layers = random_layers(model, 4, 32, True, torch.bfloat16)
    name = "model.layers.1.mlp.up_proj"
    layers[name] = random_layer(layers[name].shape, 3, 32, True, torch.bfloat16)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    file = tmp_path / "out" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["config_groups"]["group_1"]["targets"] = targets
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match=words):
        load_model(tmp_path / "out")
