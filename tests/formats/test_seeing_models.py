"""Vision-language models: the text model is quantized, the rest is what it was, in memory too."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_text, tiny_tokenizer
from tiny_seeing import SEEING, tiny_seeing, with_image
from transformers import AutoModelForMultimodalLM, CompressedTensorsConfig, PreTrainedModel

import q2n
from q2n.errors import InputError
from q2n.formats.load import load_model

SETTINGS = {"method": "gptq", "nullspace": True, "bits": 4, "group_size": 32, "symmetric": True}

SOME_SLOW = [x if x == "llava" else pytest.param(x, marks=pytest.mark.slow) for x in SEEING]


def save(place: Path, architecture: str) -> PreTrainedModel:
    model = tiny_seeing(architecture)
    model.save_pretrained(place / "model")
    tiny_tokenizer().save_pretrained(place / "model")
    (place / "text.txt").write_text(tiny_text(100))
    return model


def quantize(place: Path, output: str, **settings):
    text = {"corpus": str(place / "text.txt"), "windows": 2, "length": 16}
    return q2n.quantize(place / "model", place / output, **{**text, **SETTINGS, **settings})


def logits(model: PreTrainedModel, architecture: str) -> torch.Tensor:
    inputs = {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in with_image(architecture).items()
    }
    with torch.no_grad():
        return model(**inputs).logits


def beside_text(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Tensors of towers and projectors."""
    found = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if "language_model" not in name and not name.startswith("lm_head")
    }
    assert len(found) > 20
    return found


@pytest.mark.parametrize("architecture", SOME_SLOW)
def test_images_are_seen_as_before_and_text_quantized(architecture: str, tmp_path: Path) -> None:
    """A text would not show a tower that a reader leaves uninitialized."""
    original = save(tmp_path, architecture)
    kept = beside_text(original)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    for name in ("dequantized", "native", "compressed-tensors"):
        dtype = torch.float32 if name == "native" else torch.bfloat16
        done = quantize(tmp_path, name, format=name, dtype=str(dtype).removeprefix("torch."))
        quantized = list(done.record["layers"])
        assert len(quantized) >= 13
        assert all(x.startswith("model.language_model.layers.") for x in quantized)
        theirs, found = AutoModelForMultimodalLM.from_pretrained(
            tmp_path / name, output_loading_info=True
        )
        ours = load_model(tmp_path / name)
        assert not any(found.values()) and type(theirs) is type(ours) is type(original)
        for loaded in (theirs, ours):
            tensors = loaded.state_dict()
            assert all(torch.equal(tensors[key], tensor.to(dtype)) for key, tensor in kept.items())
        written = load_file(tmp_path / name / "model.safetensors")
        same = {key for key in stored.keys() & written.keys() if "layers." not in key}
        assert all(torch.equal(written[key], stored[key].to(dtype)) for key in same)
        assert torch.equal(logits(theirs, architecture), logits(ours, architecture))
    assert not torch.allclose(logits(ours, architecture), logits(original.bfloat16(), architecture))


@pytest.mark.parametrize("architecture", SOME_SLOW)
def test_towers_survive_both_ways_of_loading(architecture: str, tmp_path: Path) -> None:
    kept = beside_text(save(tmp_path, architecture).bfloat16())
    quantize(tmp_path, "out", format="compressed-tensors", dtype="bfloat16")
    loaded = AutoModelForMultimodalLM.from_pretrained(
        tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in kept.items())


def test_readers_get_a_pattern_for_each_tower(tmp_path: Path) -> None:
    """It matches whatever a reader calls the tower's modules."""
    save(tmp_path, "llava")
    quantize(tmp_path, "out", format="compressed-tensors")
    ignore = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    patterns = [x for x in ignore["ignore"] if x.startswith("re:")]
    assert patterns == ["re:.*multi_modal_projector.*", "re:.*vision_tower.*"]
    assert {"lm_head", "language_model.lm_head"} <= {*ignore["ignore"]}


def test_the_user_is_told_what_is_copied(tmp_path: Path) -> None:
    save(tmp_path, "llava")
    done = quantize(tmp_path, "out")
    (note,) = (note for note in done.record["notes"] if "Only the text model" in note)
    assert "copied as it is: model.vision_tower, model.multi_modal_projector (" in note
    assert "AutoModelForMultimodalLM.from_pretrained" in done.loading_example
    assert "AutoModelForMultimodalLM" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "gptq_v2"}, "LlavaForConditionalGeneration is more than a text model.*gptq_v2"),
        ({"format": "mlx"}, "LlavaForConditionalGeneration is more than a text model.*mlx"),
        (
            {"method": "quarot", "format": "native"},
            "cannot be rotated: what it makes of images.*projector",
        ),
    ],
)
def test_what_would_harm_images_is_refused(settings, message: str, tmp_path: Path) -> None:
    save(tmp_path, "llava")
    with pytest.raises(InputError, match=message):
        quantize(tmp_path, "out", **settings)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*partial*"))


def test_gguf_refuses_a_vision_model_by_type(tmp_path: Path) -> None:
    save(tmp_path, "llava")
    settings = {**SETTINGS, "nullspace": False, "group_size": None, "symmetric": None}
    given = {key: value for key, value in settings.items() if value is not None}
    with pytest.raises(InputError, match="gguf writes models of the types.*llava"):
        q2n.quantize(
            tmp_path / "model",
            tmp_path / "out",
            corpus=str(tmp_path / "text.txt"),
            **{**given, "format": "gguf", "method": "rtn"},
        )


def test_a_model_of_unknown_code_is_refused_by_name(tmp_path: Path) -> None:
    """VILA's modules are in no release of transformers."""
    save(tmp_path, "llava")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "llava_llama"}))
    with pytest.raises(InputError, match="llava_llama"):
        quantize(tmp_path, "out")
