"""MLX files, read by a plain unpacker written from the layout and by our own reader; mlx itself
reads them in tests/runtimes."""

import json
import math
from pathlib import Path

import numpy as np
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
from safetensors.torch import load_file, save_file
from tiny import save_tiny
from transformers import AutoModelForCausalLM

import q2n
from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.formats.load import load_model
from q2n.formats.older_names import with_older_names
from q2n.layers.uniform import UniformStorage
from q2n.models.source import open_source

FORMAT = FORMATS["mlx"]
LAYERS = UniformStorage(bits=4, group_size=32, symmetric=True)
NAME = "model.layers.1.mlp.down_proj"


def plain_weight(tensors: dict[str, torch.Tensor], name: str, bits: int, size: int) -> np.ndarray:
    """scale * code + bias, element by element; a row's words are one large number."""
    words = tensors[f"{name}.weight"].view(torch.int32).numpy().astype(np.uint32)
    scales = tensors[f"{name}.scales"].float().numpy()
    biases = tensors[f"{name}.biases"].float().numpy()
    weight = np.empty((len(words), words.shape[1] * 32 // bits), dtype=np.float32)
    for n, row in enumerate(words):
        number = int.from_bytes(row.tobytes(), "little")
        for k in range(weight.shape[1]):
            code = (number >> (bits * k)) % 2**bits
            weight[n, k] = scales[n, k // size] * np.float32(code) + biases[n, k // size]
    return weight


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_plain_unpacker_reads_what_was_written(
    tmp_path: Path, bits: int, symmetric: bool
) -> None:
    model = llama()
    layers = random_layers(model, bits, 32, symmetric, torch.float16)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors[f"{NAME}.weight"].dtype == torch.uint32
    found = plain_weight(tensors, NAME, bits, 32)
    expected = layers[NAME].dequantize()
    # The bias, at most 2^bits - 1 steps, is rounded to float16: by 2^-12 of that, with room for
    # float32. On a symmetric grid it is a scale times a power of two.
    steps = 0 if symmetric else 2.0 ** (bits - 11)
    allowed = layers[NAME].scale.float().max().item() * (steps + 2.0 ** (bits - 21))
    assert np.abs(found - expected.numpy()).max() <= allowed
    assert np.array_equal(load_model(tmp_path / "out").get_submodule(NAME).weight.detach(), found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_symmetric_model_is_read_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    model = qwen2(dtype)
    layers = random_layers(model, 3, 32, True, dtype)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    loaded = load_model(tmp_path / "out")
    assert_same_model(loaded, quantized_in_memory(model, layers))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_configuration(tmp_path: Path) -> None:
    model = llama()
    model.config.rope_parameters["rope_theta"] = 123456.0
    layers = random_layers(model, 4, 32, True, torch.float16)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"}
    assert config["quantization_config"] == config["quantization"]
    assert config["rope_theta"] == 123456.0 and config["rope_scaling"] is None
    assert load_model(tmp_path / "out").config.rope_parameters["rope_theta"] == 123456.0


def test_the_card_names_the_library(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    q2n.quantize(tmp_path / "model", tmp_path / "out", method="rtn", runtime="mlx", group_size=32)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: mlx\n" in card and "from mlx_lm import generate, load" in card


def test_the_bits_of_the_file_are_said(tmp_path: Path) -> None:
    """A scale and a bias of 16 bits for 32 weights; the zero point of the grid has 3 bits."""
    save_tiny(tmp_path / "model")
    asked = {"method": "rtn", "bits": 3, "group_size": 32}
    done = q2n.quantize(tmp_path / "model", tmp_path / "out", runtime="mlx", **asked)
    assert done.record["bits_per_weight"] == pytest.approx(3 + 19 / 32)
    said = "takes 4.000 bits in the file, where its code and scales need 3.594: mlx"
    assert [said in note for note in done.record["notes"]].count(True) == 1
    packed = q2n.quantize(tmp_path / "model", tmp_path / "packed", **asked)
    assert not any("in the file" in note for note in packed.record["notes"])


def test_transformers_refuses_instead_of_loading_arbitrary_weights(tmp_path: Path) -> None:
    model = llama()
    layers = random_layers(model, 4, 32, True, torch.float16)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    with pytest.raises(ValueError, match="quant_method"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "older"),
    [
        (
            {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}},
            {"rope_theta": 5.0, "rope_scaling": None},
        ),
        (
            {"rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 0.5}},
            {"rope_theta": 5.0, "partial_rotary_factor": 0.5, "rope_scaling": None},
        ),
        (
            {"rope_parameters": {"rope_theta": 5.0, "rope_type": "llama3", "factor": 8.0}},
            {
                "rope_theta": 5.0,
                "rope_scaling": {"type": "llama3", "rope_type": "llama3", "factor": 8.0},
            },
        ),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 5.0, "rope_type": "linear", "factor": 8.0},
                    "sliding_attention": {"rope_theta": 7.0, "rope_type": "default"},
                },
                "_sliding_window_pattern": 6,
            },
            {
                "rope_theta": 5.0,
                "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 8.0},
                "rope_local_base_freq": 7.0,
                "sliding_window_pattern": 6,
            },
        ),
        (
            {
                "model_type": "gpt_neox",
                "rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 0.25},
            },
            {
                "rope_theta": 5.0,
                "partial_rotary_factor": 0.25,
                "rope_scaling": None,
                "rotary_emb_base": 5.0,
                "rotary_pct": 0.25,
            },
        ),
        ({"model_type": "qwen3_moe", "num_local_experts": 4}, {"num_experts": 4}),
        ({"model_type": "gpt2"}, {}),
        ({"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 6.0}, {"rope_scaling": None}),
    ],
)
def test_older_names_stand_beside_the_present_ones(config: dict, older: dict) -> None:
    assert with_older_names(config) == {**config, **older}
    nested = {"text_config": config, "model_type": "x"}
    assert with_older_names(nested) == {**nested, "text_config": {**config, **older}}


def test_a_factor_on_queries_and_keys_that_mlx_lm_ignores_is_refused() -> None:
    model = llama()
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    model.config.rope_parameters |= yarn | {"attention_factor": 1.5}
    with pytest.raises(InputError, match="attention_factor 1.5, and there it is 1.0693"):
        FORMAT.container.check(open_source(model), LAYERS)
    model.config.rope_parameters["attention_factor"] = 0.1 * math.log(2) + 1
    assert FORMAT.container.check(open_source(model), LAYERS) == []


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"groups of 32, 64, 128 inputs, not of -1 \(q_proj\)"):
        FORMAT.codec.check_grid("q_proj", (64, 64), bits=4, group_size=-1)
    with pytest.raises(InputError, match="not of 16"):
        FORMAT.codec.check_grid("q_proj", (64, 64), bits=4, group_size=16)
    with pytest.raises(InputError, match="q_proj has 576 inputs, which groups of 128 do not"):
        FORMAT.codec.check_grid("q_proj", (64, 576), bits=4, group_size=128)
    with pytest.raises(InputError, match="not 7"):
        FORMAT.codec.check_grid("q_proj", (64, 64), bits=7, group_size=32)
    layer = random_layer((64, 64), 4, 32, False, torch.float32)
    with pytest.raises(InputError, match="leave the range of torch.float16"):
        FORMAT.codec.encode("q_proj", layer.scale_rows(torch.full((64,), 1e7)), torch.float16)


def damaged(folder: Path, key: str, tensor: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors[key]
    save_file(tensors if tensor is None else {**tensors, key: tensor}, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("part", "tensor", "words"),
    [
        ("weight", None, "weight has shape"),
        ("weight", torch.ones(64, 12), "weight has dtype"),
        ("weight", torch.tensor(1).int(), "weight has shape|scales has shape"),
        ("biases", None, "biases is missing"),
        ("biases", torch.ones(64, 2), "biases has shape"),
        ("scales", torch.full((64, 3), float("nan")), "scales has NaN"),
    ],
)
def test_damaged_tensors_are_named(
    tmp_path: Path, part: str, tensor: torch.Tensor | None, words: str
) -> None:
    model = llama()
    layers = random_layers(model, 4, 32, True, torch.float16)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    damaged(tmp_path / "out", f"{NAME}.{part}", tensor)
    with pytest.raises(InputError, match=words):
        load_model(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mode": "mxfp4"}, "use mlx-lm"),
        ({NAME: {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "use mlx-lm"),
        ({NAME: {"bits": 8, "group_size": 32}}, "tensor .*scales has shape"),
        ({NAME: {"bits": 4}}, "group_size"),
        ({NAME: {"bits": 4, "group_size": "32"}}, "group_size"),
    ],
)
def test_grids_that_are_not_read_are_refused(tmp_path: Path, change: dict, words: str) -> None:
    model = llama()
    layers = random_layers(model, 4, 32, True, torch.float16)
    FORMAT.write(tmp_path / "out", open_source(model), layers)
    file = tmp_path / "out" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= change
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match=words):
        load_model(tmp_path / "out")
