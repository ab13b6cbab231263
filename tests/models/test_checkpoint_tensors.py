"""What the files hold besides, instead of or short of what the model takes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CompressedTensorsConfig,
)

import q2n
from q2n.errors import InputError
from q2n.formats.load import load_model
from q2n.models.source import open_source

INDEX = "model.safetensors.index.json"
BLOCK = "model.layers.{}.mlp.up_proj.weight"

ROUNDING = 2**-10
"""transformers multiplies codes and scales in the dtype of the scales, float16, we in float32."""


def edit(folder: Path, **changed: torch.Tensor | None) -> Path:
    """Replace, add or remove tensors of a one-file checkpoint; `__` stands for a dot."""
    file = folder / "model.safetensors"
    named = {key.replace("__", "."): tensor for key, tensor in changed.items()}
    tensors = {k: x for k, x in {**load_file(file), **named}.items() if x is not None}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def edit_json(file: Path, **changed: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


EXTRA = {
    "mtp__layers__0__proj__weight": torch.randn(8, 8).half(),
    "score__weight": torch.randn(2, 64),
    "counted": torch.arange(3),
}


def test_what_no_module_takes_is_listed_and_counted(tmp_path):
    plain = open_source(save_tiny(tmp_path / "plain"))
    source = open_source(edit(save_tiny(tmp_path / "model"), **EXTRA))
    assert plain.untaken == []
    assert sorted(source.untaken) == ["counted", "mtp.layers.0.proj.weight", "score.weight"]
    assert source.stored("counted").dtype is torch.int64
    assert source.size_bytes() - plain.size_bytes() == 8 * 8 * 2 + 2 * 64 * 4 + 3 * 8


@pytest.mark.slow
@pytest.mark.parametrize("format", ["native", "compressed-tensors", "gptq_v2", "dequantized"])
def test_it_is_copied_unchanged_and_named(tmp_path, format):
    folder = edit(save_tiny(tmp_path / "model"), **EXTRA)
    done = q2n.quantize(folder, tmp_path / "out", method="rtn", bits=8, format=format)
    written = load_file(tmp_path / "out" / "model.safetensors")
    for key, tensor in EXTRA.items():
        copied = written[key.replace("__", ".")]
        assert copied.dtype is tensor.dtype and torch.equal(copied, tensor)
    for text in (done.record["notes"][0], (tmp_path / "out" / "README.md").read_text()):
        assert "copied unchanged: " in text and "mtp.layers.0.proj.weight" in text
    load_model(tmp_path / "out")
    if format != "gptq_v2":  # its reader needs more than transformers
        packed = format == "compressed-tensors"
        dense = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if packed else {}
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", **dense)


def test_a_rotated_model_leaves_it_out_and_says_so(tmp_path):
    """Layers that read the rotated stream would compute nonsense."""
    folder = edit(save_tiny(tmp_path / "model"), **EXTRA)
    settings = {"method": "rtn", "bits": 8, "rotate": "hadamard", "format": "native"}
    done = q2n.quantize(folder, tmp_path / "out", **settings)
    assert "counted" not in load_file(tmp_path / "out" / "model.safetensors")
    assert "left out" in done.record["notes"][0] and "counted" in done.record["notes"][0]


@pytest.mark.parametrize("name", ["num_nextn_predict_layers", "num_mtp_layers"])
def test_more_layers_than_config_json_has_are_refused(tmp_path, name):
    folder = save_tiny(tmp_path / "model", layers=3)
    edit_json(folder / "config.json", num_hidden_layers=2)
    with pytest.raises(InputError, match=r"layer 2 \(from 0\).*'model\.layers' has 2"):
        open_source(folder)
    edit_json(folder / "config.json", **{name: 1})  # the third predicts further tokens
    source = open_source(folder)
    assert BLOCK.format(2) in source.untaken and BLOCK.format(1) not in source.untaken


def test_fewer_layers_than_config_json_has_are_refused(tmp_path):
    folder = save_tiny(tmp_path / "model", layers=2)
    edit_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(InputError, match=r"no tensor 'model\.layers\.2\."):
        open_source(folder)


def test_a_classifier_is_no_causal_model(tmp_path):
    config = tiny_model(tie_word_embeddings=False).config
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="is a LlamaForSequenceClassification.*causal"):
        open_source(tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_a_weight_that_is_no_number_of_16_bits_is_refused(tmp_path, dtype):
    weight = {"model__layers__1__mlp__up_proj__weight": torch.ones(96, 64).to(dtype)}
    folder = edit(save_tiny(tmp_path / "model"), **weight)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight' is stored as "):
        open_source(folder)


def two_models(folder: Path) -> tuple[Path, Path]:
    """An old save in several files and a new one in one file."""
    tiny_model(seed=1).save_pretrained(folder / "old", max_shard_size="100KB")
    tiny_model(seed=2).save_pretrained(folder / "new")
    return folder / "old", folder / "new"


def test_one_file_comes_before_an_index(tmp_path):
    old, new = two_models(tmp_path)
    (old / "model.safetensors").write_bytes((new / "model.safetensors").read_bytes())
    loaded = AutoModelForCausalLM.from_pretrained(old).state_dict()
    source = open_source(old)
    assert all(torch.equal(source.tensor(name), loaded[name]) for name in source.names())
    assert torch.equal(
        source.tensor(BLOCK.format(0)), tiny_model(seed=2).state_dict()[BLOCK.format(0)]
    )


def test_a_file_that_config_json_names_comes_first(tmp_path):
    old, new = two_models(tmp_path)
    (new / INDEX).write_text((old / INDEX).read_text())
    for file in old.glob("model-*.safetensors"):
        (new / file.name).write_bytes(file.read_bytes())
    edit_json(new / "config.json", transformers_weights=INDEX)
    loaded = AutoModelForCausalLM.from_pretrained(new).state_dict()
    source = open_source(new)
    assert all(torch.equal(source.tensor(name), loaded[name]) for name in source.names())
    q2n.quantize(new, tmp_path / "out", method="rtn", bits=8, format="dequantized")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")  # which has one file, and says nothing


def test_of_two_files_with_one_tensor_the_last_counts(tmp_path):
    """Whatever the index says: so transformers reads them."""
    folder, _ = two_models(tmp_path)
    files = sorted(folder.glob("model-*.safetensors"))
    save_file(
        {**load_file(files[-1]), BLOCK.format(0): torch.ones(96, 64)}, files[-1], {"format": "pt"}
    )
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    source = open_source(folder)
    assert torch.equal(source.tensor(BLOCK.format(0)), loaded[BLOCK.format(0)])


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b", "a\\b", "..", ""])
def test_files_outside_the_folder_are_refused(tmp_path, name):
    folder, _ = two_models(tmp_path)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    edit_json(folder / INDEX, weight_map={**weight_map, "model.norm.weight": name})
    with pytest.raises(InputError, match="no file of this folder"):
        open_source(folder)
    edit_json(folder / "config.json", transformers_weights=name or "/")
    with pytest.raises(InputError, match="transformers_weights.*no file of this folder"):
        open_source(folder)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["native", "compressed-tensors", "dequantized"])
def test_a_mixture_comes_back_in_every_format(tmp_path, format):
    folder = save_tiny(tmp_path / "model", "mixtral", layers=2, num_local_experts=4)
    q2n.quantize(folder, tmp_path / "out", method="rtn", bits=8, symmetric=True, format=format)
    packed = format == "compressed-tensors"
    dense = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if packed else {}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **dense).eval()
    ours, original = load_model(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        a, b, c = (model.eval()(tokens).logits for model in (ours, theirs, original))
    assert (a - b).norm() < ROUNDING * b.norm()
    assert (a - c).norm() < 0.05 * c.norm()
