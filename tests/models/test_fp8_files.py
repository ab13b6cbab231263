"""Originals in FP8: read as an entry-by-entry definition and transformers read them, quantized as
the dense model that they stand for."""

import json

import pytest
import torch
from mixtures import tiny_mixture
from models.published import assert_quantized_alike, assert_read_as_dense
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from q2n.errors import InputError, NumericalError
from q2n.formats.load import load_model
from q2n.models.source import open_source

BLOCK = (24, 40)
"""Divides none of the tiny matrices."""


def saved(folder, model, block=BLOCK, **described):
    """Two folders: the model in FP8, and the dense one that its numbers are."""
    for name in ("fp8", "dense"):
        model.to(torch.bfloat16).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    tensors = load_file(folder / "fp8" / "model.safetensors")
    own, dense = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            eight, factors = in_eight_bits(weight.float(), block)
            own[name], own[f"{name}_scale_inv"] = eight, factors
            dense[name] = by_definition(eight, factors, block).to(torch.bfloat16)
    save_file(own, folder / "fp8" / "model.safetensors", {"format": "pt"})
    save_file(dense, folder / "dense" / "model.safetensors", {"format": "pt"})
    quantization = {"quant_method": "fp8", "weight_block_size": list(block), **described}
    describe(folder / "fp8", {"activation_scheme": "dynamic", **quantization})
    return folder / "fp8", folder / "dense"


def saved_as_mistral(folder, model, form=()):
    """One factor a matrix, of this shape, and one of its inputs."""
    fp8, dense = saved(folder, model, (10**6, 10**6), activation_scheme="static")
    file = fp8 / "model.safetensors"
    own = {}
    for name, tensor in load_file(file).items():
        own[name] = tensor.view(form) if name.endswith("_scale_inv") else tensor
        if name.endswith("_scale_inv"):
            own[name.replace("weight_scale_inv", "activation_scale")] = torch.tensor(0.02)
    save_file(own, file, {"format": "pt"})
    described = {"weight_block_size": None, "activation_scheme": "static"}
    describe(fp8, {"quant_method": "fp8", **described})
    return fp8, dense


def describe(folder, quantization):
    file = folder / "config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"quantization_config": quantization})
    )


def blocks(shape, block):
    return [
        (i, j, slice(a, a + block[0]), slice(b, b + block[1]))
        for i, a in enumerate(range(0, shape[0], block[0]))
        for j, b in enumerate(range(0, shape[1], block[1]))
    ]


def in_eight_bits(weight, block):
    eight, found = torch.empty_like(weight), {}
    for i, j, rows, columns in blocks(weight.shape, block):
        found[i, j] = weight[rows, columns].abs().amax() / 448
        eight[rows, columns] = weight[rows, columns] / found[i, j]
    factors = torch.empty(max(i for i, _ in found) + 1, max(j for _, j in found) + 1)
    for place, factor in found.items():
        factors[place] = factor
    return eight.to(torch.float8_e4m3fn), factors


def by_definition(eight, factors, block):
    weight = torch.empty(eight.shape)
    for i, j, rows, columns in blocks(eight.shape, block):
        weight[rows, columns] = eight[rows, columns].float() * factors[i, j]
    return weight


def as_mistral_in_matrices(folder, model):
    return saved_as_mistral(folder, model, (1, 1))


@pytest.mark.parametrize("save", [saved, saved_as_mistral, as_mistral_in_matrices])
@pytest.mark.parametrize("model", [lambda: tiny_model(layers=2), tiny_mixture])
def test_weights_are_those_of_the_dense_model(tmp_path, model, save):
    assert_read_as_dense(*save(tmp_path, model()), "FP8")


def test_transformers_reads_the_same(tmp_path):
    """Where blocks divide the matrices: of others it reads none."""
    fp8, _ = saved(tmp_path, tiny_model(layers=2), (32, 16))
    own = load_model(fp8).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(
        fp8, quantization_config=FineGrainedFP8Config(weight_block_size=(32, 16), dequantize=True)
    ).state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name].to(own[name])) for name in own)


def test_transformers_reads_the_same_of_one_factor_a_matrix(tmp_path):
    fp8, _ = saved_as_mistral(tmp_path, tiny_model(layers=2))
    own = load_model(fp8).state_dict()
    read = FineGrainedFP8Config(weight_block_size=None, activation_scheme="static", dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(fp8, quantization_config=read).state_dict()
    assert all(torch.equal(own[name], theirs[name].to(own[name])) for name in own)


def test_the_checkpoint_is_that_of_the_dense_model(tmp_path):
    assert_quantized_alike(tmp_path, *saved(tmp_path, tiny_model(layers=2)))


def test_a_run_in_float32_rounds_nothing(tmp_path):
    fp8, _ = saved(tmp_path, tiny_model(layers=2))
    name = "model.layers.0.mlp.up_proj.weight"
    own = load_file(fp8 / "model.safetensors")
    expected = by_definition(own[name], own[f"{name}_scale_inv"], BLOCK)
    assert torch.equal(open_source(fp8, dtype="float32").tensor(name), expected)


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ({"weight_block_size": None}, "one for the matrix"),
        ({"weight_block_size": [0, 4]}, r"\[0, 4\].*only factors of blocks"),
        ({"weight_block_size": [16, 16]}, "factors .* expected"),
    ],
)
def test_other_kinds_of_fp8_are_refused(tmp_path, described, words):
    fp8, _ = saved(tmp_path, tiny_model(layers=2))
    describe(fp8, {"quant_method": "fp8", "weight_block_size": list(BLOCK), **described})
    with pytest.raises(InputError, match=words):
        open_source(fp8)


def test_damaged_files_are_named(tmp_path):
    fp8, _ = saved(tmp_path, tiny_model(layers=2))
    file, name = fp8 / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    whole = load_file(file)
    for lacking in (name, f"{name}_scale_inv"):
        save_file({x: whole[x] for x in whole if x != lacking}, file)
        with pytest.raises(InputError, match=f"has no '{lacking}' beside it"):
            open_source(fp8)
    broken = whole[f"{name}_scale_inv"].clone()
    broken[0, 0] = torch.inf
    save_file({**whole, f"{name}_scale_inv": broken}, file)
    with pytest.raises(InputError, match="up_proj.weight_scale_inv' has NaN or Inf"):
        open_source(fp8).digest()
    nan = whole[name].clone()
    nan.view(torch.uint8)[0, 0] = 0x7F
    save_file({**whole, name: nan}, file)
    with pytest.raises((InputError, NumericalError), match="up_proj.weight"):
        open_source(fp8).digest()
