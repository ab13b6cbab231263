"""A rewritten model in checkpoints: norms, biases and routers are written as they have become."""

import pytest
import torch
from formats.gguf.checkpoints import save
from mixtures import MIXTURES, tiny_mixture
from tiny import tiny_model, tiny_text, tiny_tokenizer

import q2n
from q2n.formats.load import load_model

TOKENS = torch.arange(24).reshape(2, 12) + 3


def quantized(folder, architecture, format, **settings):
    if not (folder / "model").exists():
        if format == "gguf":  # with a tokenizer that llama.cpp has
            save(folder / "model", architecture)
        else:
            make = tiny_mixture if architecture in MIXTURES else tiny_model
            make(architecture, layers=2).save_pretrained(folder / "model")
            tiny_tokenizer().save_pretrained(folder / "model")
        (folder / "text.txt").write_text(tiny_text())
    given = {"method": "rtn", "rewrite": "awq", "windows": 4, "length": 16, **settings}
    corpus = str(folder / "text.txt")
    q2n.quantize(folder / "model", folder / format, format=format, corpus=corpus, **given)
    return logits(load_model(folder / format))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, use_cache=False).logits.float()


@pytest.mark.parametrize(
    ("architecture", "format", "settings"),
    [
        ("llama", "compressed-tensors", {"bits": 8}),
        ("llama", "native", {"bits": 8}),
        ("llama", "gguf", {"grid": "q8_0"}),
        ("gemma2", "native", {"bits": 8}),
        ("opt", "native", {"bits": 8}),
        ("qwen3_moe", "native", {"bits": 8, "rewrite_windows": 1}),
        ("qwen3_moe", "gguf", {"grid": "q8_0", "rewrite_windows": 1}),
    ],
)
def test_checkpoints_hold_what_has_changed(tmp_path, architecture, format, settings):
    loaded = quantized(tmp_path, architecture, format, **settings)
    original = logits(load_model(tmp_path / "model"))
    plain = quantized(tmp_path, architecture, "dequantized", **{"bits": 8, "rewrite": "off"})
    distance, usual = ((x - original).norm() / original.norm() for x in (loaded, plain))
    assert distance < 2 * usual < 0.2


def test_the_record_says_what_was_not_scaled(tmp_path):
    quantized(tmp_path, "llama", "native", bits=4)
    card = (tmp_path / "native" / "README.md").read_text()
    assert "AWQ scales, rtn" in card
    assert "scales no input of 2 linears" in card and "layers.0.self_attn.o_proj" in card
