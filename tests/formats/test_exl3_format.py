"""EXL3 files, read by a plain decoder written from the format's description (oracles/exl3.py), and
by our own reader. Readers that users have need an NVIDIA GPU: none was run."""

import json

import pytest
import torch
from formats.tiny_models import assert_same_model, llama, quantized_in_memory
from layers.test_exl3 import layer
from oracles import exl3 as oracle
from safetensors.torch import load_file
from tiny import tiny_model

from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.formats.exl3 import EXL3Codec, EXL3Entry, pack_trellis, unpack_trellis
from q2n.formats.load import load_model
from q2n.layers.quantized import StorageSpec
from q2n.linalg import exl3_code
from q2n.models.source import open_source

CODEC = EXL3Codec()
WIDTHS = pytest.mark.parametrize("bits", range(1, 9))


def encoded(example):
    return CODEC.encode("h.0", example, torch.float32)


@WIDTHS
@pytest.mark.parametrize("codebook", ["mul1", "mcg", "3inst"])
def test_a_plain_decoder_reads_the_tiles(bits, codebook):
    codes = torch.randint(2**bits, (32, 48), generator=torch.Generator().manual_seed(bits))
    trellis = pack_trellis(codes.to(torch.uint8), bits)
    assert trellis.dtype == torch.int16 and trellis.shape == (2, 3, 16 * bits)
    expected = oracle.inner(trellis, codebook)
    decoded = exl3_code.decoded(codes.to(torch.uint8), bits, codebook)
    assert torch.equal(decoded, torch.from_numpy(expected).float())
    assert torch.equal(unpack_trellis(trellis), codes.to(torch.uint8))


@pytest.mark.parametrize("codebook", ["mul1", "mcg", "3inst"])
def test_a_plain_decoder_reads_the_weight(codebook):
    example = layer((128, 128), 3, codebook)
    parts = encoded(example)
    named = {name for name in ("mul1", "mcg", "3inst") if name in parts}
    assert named == ({codebook} - {"3inst"})
    expected = oracle.weight(parts["trellis"], parts["suh"].numpy(), parts["svh"].numpy(), codebook)
    found = example.dequantize().double()
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_the_tensor_of_a_codebook_holds_its_multiplier():
    number = encoded(layer())["mul1"]
    assert number.dtype == torch.int32 and number.shape == ()
    assert int(number) % 2**32 == 0x83DCD12D


@WIDTHS
def test_decode_is_the_inverse(bits):
    example = layer((128, 256), bits)
    assert torch.equal(CODEC.decode("h.0", encoded(example), "mul1"), example.dequantize())


def test_what_is_filled_up_is_zero_and_cut_off():
    example = layer((100, 130))
    parts = encoded(example)
    assert (len(parts["svh"]), len(parts["suh"])) == (128, 256)
    dense = CODEC.decode("h.0", parts, "mul1")
    assert not dense[100:].any() and not dense[:, 130:].any()
    assert torch.equal(CODEC.unpadded(dense, (100, 130)), example.dequantize())
    assert CODEC.unpadded(dense, (100, 100)) is dense  # another model's


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("trellis", lambda x: x[:, :-1]),
        ("trellis", lambda x: x[..., :-1]),
        ("trellis", lambda x: x.int()),
        ("suh", lambda x: x[:-16]),
        ("suh", lambda x: x.float()),
        ("svh", lambda x: x.clone().fill_(torch.nan)),
        ("svh", None),
    ],
)
def test_damaged_tensors_are_named(part, change):
    parts = encoded(layer())
    if change is None:
        del parts[part]
    else:
        parts[part] = change(parts[part])
    with pytest.raises(InputError, match=r"tensor h\.0\.(trellis|suh|svh) .*fetch the checkpoint"):
        CODEC.decode("h.0", parts, "mul1")


def test_only_its_own_layers_are_held():
    assert CODEC.holds(StorageSpec(kind="trellis_tiles"))
    assert not CODEC.holds(StorageSpec(kind="trellis"))
    assert not CODEC.holds(StorageSpec(kind="trellis_tiles", runtime="--kv-bits 4"))


def test_a_checkpoint_is_read_back(tmp_path):
    model = llama()
    layers = {
        name: layer(tuple(module.weight.shape), 2 + i % 2, ("mul1", "3inst")[i % 2])
        for i, (name, module) in enumerate(model.named_modules())
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert any(size % 128 for example in layers.values() for size in example.shape)
    FORMATS["exl3"].write(tmp_path / "out", open_source(model), layers)
    assert_same_model(load_model(tmp_path / "out"), quantized_in_memory(model, layers))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {key for key in tensors if key.startswith("model.layers.0.mlp.up_proj.")} == {
        f"model.layers.0.mlp.up_proj.{part}" for part in ("trellis", "suh", "svh", "mul1")
    }
    config = json.loads((tmp_path / "out" / "quantization_config.json").read_text())
    assert config["quant_method"] == "exl3" and 2 < config["bits"] < 3
    assert (config["codebook"], config["head_bits"]) == ("mul1", 16)


def test_settings_of_the_rotary_embedding_stand_where_exllamav3_looks(tmp_path):
    """Of a Gemma 3 it would find none in those by kinds of layers."""
    ropes = {
        "full_attention": {"rope_type": "linear", "rope_theta": 5e5, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    model = tiny_model("gemma3_text", layers=1, rope_parameters=ropes)
    layers = {"model.layers.0.mlp.up_proj": layer(model.model.layers[0].mlp.up_proj.weight.shape)}
    FORMATS["exl3"].write(tmp_path / "out", open_source(model), layers)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == 5e5
    assert config["rope_scaling"] == {"type": "linear", "rope_type": "linear", "factor": 8.0}
    found = load_model(tmp_path / "out").config.rope_parameters
    assert all(found[kind].items() >= entries.items() for kind, entries in ropes.items())


def test_which_codebook_is_read_from_the_names():
    keys = ["a.trellis", "a.suh", "a.svh", "a.mcg", "b.trellis", "b.svh", "b.suh", "b.bias"]
    layers = EXL3Entry().packed_layers(keys, {})
    assert {name: x.description for name, x in layers.items()} == {"a": "mcg", "b": "3inst"}
    assert layers["a"].parts == ("trellis", "suh", "svh", "mcg")
