"""Whether the head is the embeddings: what is stored decides, not the configuration."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import q2n
from q2n.errors import InputError
from q2n.formats.load import load_model
from q2n.models.source import assemble, open_source

TOKENS = torch.arange(24).reshape(2, 12)
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
FORMATS = ("native", "compressed-tensors", "dequantized")

ROUNDING = 2**-10
"""transformers multiplies codes and scales in the dtype of the scales, float16, we in float32."""


def saved(folder: Path, *, tied: bool, says_tied: bool, seed: int = 0) -> Path:
    """Files with a head of its own or without one, under a config.json that says what it says."""
    tiny_model(tie_word_embeddings=tied, seed=seed).save_pretrained(folder)
    file = folder / "config.json"
    values = json.loads(file.read_text()) | {"tie_word_embeddings": says_tied}
    file.write_text(json.dumps(values))
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def from_pretrained(folder: Path, format: str) -> torch.nn.Module:
    packed = format == "compressed-tensors"
    dense = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if packed else {}
    return AutoModelForCausalLM.from_pretrained(folder, **dense).eval()


def test_a_stored_head_stays_under_a_tied_config(tmp_path):
    folder = saved(tmp_path / "model", tied=False, says_tied=True)
    source = open_source(folder)
    assert HEAD in source.names() and not source.config.tie_word_embeddings
    assert "tie_word_embeddings false" in source.notes[0]
    expected = logits(AutoModelForCausalLM.from_pretrained(folder).eval())
    assert torch.equal(logits(assemble(source)), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "rotate"), [*((format, "none") for format in FORMATS), ("native", "hadamard")]
)
def test_every_reader_of_the_result_has_the_stored_head(tmp_path, format, rotate):
    folder = saved(tmp_path / "model", tied=False, says_tied=True)
    expected = logits(AutoModelForCausalLM.from_pretrained(folder).eval())
    out = tmp_path / "out"
    q2n.quantize(folder, out, method="rtn", bits=8, format=format, rotate=rotate)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    ours, theirs = logits(load_model(out)), logits(from_pretrained(out, format))
    assert (ours - theirs).norm() < ROUNDING * theirs.norm()
    assert (ours - expected).norm() < 0.05 * expected.norm()  # 8 bits; 1.4 with the other head


def test_a_stored_head_equal_to_the_embeddings_stays_tied(tmp_path):
    folder = saved(tmp_path / "model", tied=True, says_tied=True)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, HEAD: tensors[EMBEDDINGS].clone()}, file)
    source = open_source(folder)
    assert HEAD not in source.names() and source.config.tie_word_embeddings
    assert source.notes == [] and source.untaken == []
    assert source.size_bytes() == 4 * sum(tensor.numel() for tensor in tensors.values())


def test_only_the_head_is_stored(tmp_path):
    """transformers ties the embeddings to the head then."""
    folder = saved(tmp_path / "model", tied=True, says_tied=True)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({HEAD: tensors.pop(EMBEDDINGS), **tensors}, file)
    source = open_source(folder)
    assert source.source_key(EMBEDDINGS) == HEAD
    expected = logits(AutoModelForCausalLM.from_pretrained(folder).eval())
    assert torch.equal(logits(assemble(source)), expected)
    out = tmp_path / "out"
    q2n.quantize(folder, out, method="rtn", bits=8, rotate="hadamard", format="native")
    assert torch.allclose(
        logits(load_model(out)), logits(from_pretrained(out, "native")), atol=1e-4
    )
    assert (logits(load_model(out)) - expected).norm() < 0.05 * expected.norm()


def test_an_untied_config_needs_a_head(tmp_path):
    """transformers would draw one at random."""
    folder = saved(tmp_path / "model", tied=True, says_tied=False)
    with pytest.raises(InputError, match=r"no tensor 'lm_head\.weight'"):
        open_source(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_an_object_is_written_as_it_is(tmp_path, tied):
    """The object's head is, or is not, its embeddings; its configuration says the opposite."""
    model = tiny_model(tie_word_embeddings=tied)
    model.config.tie_word_embeddings = not tied
    expected = logits(model)
    source = open_source(model)
    assert "otherwise" in source.notes[0]
    assert torch.equal(logits(assemble(source)), expected)
    out = tmp_path / "out"
    q2n.quantize(model, out, method="rtn", bits=8, format="dequantized")
    assert model.config.tie_word_embeddings is not tied  # the user's own stays
    written = logits(from_pretrained(out, "dequantized"))
    assert (written - expected).norm() < 0.05 * expected.norm()


def test_ties_declared_for_an_older_transformers_do_not_count():
    """They were a list of names; the model is untied, so nobody asks for them otherwise."""
    model = tiny_model(tie_word_embeddings=False)
    model._tied_weights_keys = [HEAD]
    assert HEAD in open_source(model).names() and open_source(model).notes == []
