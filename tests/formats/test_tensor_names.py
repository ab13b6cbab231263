"""Tensors keep the names of the original's files, and every reader finds them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from formats.tiny_models import llama
from safetensors.torch import load_file
from tiny import save_tiny, tiny_seeing_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CompressedTensorsConfig,
    PreTrainedModel,
)

import q2n
from q2n.formats.load import load_model
from q2n.models.tensor_names import names_in_model, saved_names

FORMATS = ["dequantized", "compressed-tensors", "native"]
TOKENS = torch.arange(24).reshape(2, 12)
SETTINGS: dict[str, Any] = {"method": "rtn", "bits": 4, "group_size": 32, "symmetric": True}


def seeing() -> PreTrainedModel:
    """A tiny Gemma 3 with a vision tower: its modules are called otherwise than its tensors."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    return tiny_seeing_model(layers=3, tower={**tower, "num_hidden_layers": 1})


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


PARTS = {"weight_packed", "weight_scale", "weight_shape", "codes", "scale"}
PARTS |= {"qweight", "qzeros", "scales", "g_idx", "biases"}


def weights(tensors: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors, those of packed linears as their weights."""
    split = (name.rpartition(".") for name in tensors)
    return {f"{module}.{'weight' if part in PARTS else part}" for module, _, part in split}


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_names_are_those_of_the_originals_files(tmp_path: Path, name: str, in_memory: bool) -> None:
    model = seeing()
    model.save_pretrained(tmp_path / "model")
    original = tensors_of(tmp_path / "model")
    given = model if in_memory else tmp_path / "model"
    q2n.quantize(given, tmp_path / "out", format=name, **SETTINGS)
    tensors = tensors_of(tmp_path / "out")
    assert weights(tensors) == set(original)
    assert any(x.startswith("language_model.model.layers.2.") for x in tensors)
    kept = [x for x in tensors if x.startswith("vision_tower.")]
    assert kept and all(torch.equal(tensors[x], original[x]) for x in kept)


@pytest.mark.parametrize("name", FORMATS)
def test_transformers_and_our_reader_agree(tmp_path: Path, name: str) -> None:
    seeing().save_pretrained(tmp_path / "model")
    q2n.quantize(tmp_path / "model", tmp_path / "out", format=name, **SETTINGS)
    ours = load_model(tmp_path / "out")
    for kind in (AutoModelForCausalLM, AutoModelForImageTextToText):
        loaded, found = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(found.values())
        assert torch.equal(logits(loaded), logits(ours))
    assert not torch.equal(logits(ours), logits(seeing()))


def test_readers_are_told_both_names_of_what_is_not_quantized(tmp_path: Path) -> None:
    seeing().save_pretrained(tmp_path / "model")
    linear = "vision_tower.encoder.layers.0.mlp.fc1"
    q2n.quantize(tmp_path / "model", tmp_path / "out", format="compressed-tensors", **SETTINGS)
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert {linear, f"model.{linear}", "lm_head"} <= set(told["ignore"])


@pytest.mark.parametrize("name", ["dequantized", "compressed-tensors", "native", "gptq_v2", "mlx"])
def test_a_base_models_tensors_get_its_prefix(tmp_path: Path, name: str) -> None:
    """`from_pretrained` adds it to plain weights, and not to packed ones under every option."""
    model = llama(tied=True, dtype=torch.bfloat16)
    model.model.save_pretrained(tmp_path / "model")
    assert "norm.weight" in tensors_of(tmp_path / "model")
    q2n.quantize(tmp_path / "model", tmp_path / "out", format=name, **SETTINGS)
    assert weights(tensors_of(tmp_path / "out")) == {n for n, _ in model.named_parameters()}
    if name == "compressed-tensors":
        loaded = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
        )
        assert torch.equal(logits(loaded), logits(load_model(tmp_path / "out")))


def test_saved_names_are_those_of_save_pretrained(tmp_path: Path) -> None:
    model = seeing()
    model.save_pretrained(tmp_path)
    tensors = dict(model.named_parameters())
    saved, fused = saved_names(model, tensors)
    assert not fused
    assert set(saved.values()) == set(tensors_of(tmp_path)) and saved.keys() == tensors.keys()
    assert names_in_model(model, saved.values()) == {key: name for name, key in saved.items()}


def test_parts_are_renamed_as_their_weight(tmp_path: Path) -> None:
    linear = "layers.0.mlp.up_proj"
    assert names_in_model(seeing(), [f"language_model.model.{linear}.codes"]) == {
        f"language_model.model.{linear}.codes": f"model.language_model.{linear}.codes"
    }
    assert names_in_model(
        llama(), [f"{linear}.qweight", "model.norm.weight", "mtp.proj.codes"]
    ) == {
        f"{linear}.qweight": f"model.{linear}.qweight",
        "model.norm.weight": "model.norm.weight",
        "mtp.proj.codes": "mtp.proj.codes",
    }


def test_a_checkpoint_of_equal_names_keeps_them(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "qwen2")
    q2n.quantize(folder, tmp_path / "out", format="native", **SETTINGS)
    assert weights(tensors_of(tmp_path / "out")) == set(tensors_of(folder))
