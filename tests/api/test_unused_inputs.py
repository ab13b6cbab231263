"""Inputs that the calibration text never uses, the whole way."""

import json

import pytest
import torch
from tiny import tiny_model, tiny_text, tiny_tokenizer

import q2n
from q2n.formats.load import load_model

pytestmark = pytest.mark.slow

TEXT = tiny_text()
SLEEPING = 64
"""Neurons of each MLP that only words outside of the text wake."""


def words():
    """Tokens of the text, and others."""
    used = torch.tensor(sorted(set(tiny_tokenizer()(TEXT)["input_ids"])))
    return used, torch.tensor([i for i in range(4, 128) if i not in used.tolist()])


def sleeping_model():
    """An OPT with two kinds of words, each with its own sign in one channel, and neurons that only
    one kind wakes."""
    model = tiny_model("opt", layers=2, ffn_dim=128, do_layer_norm_before=True)
    used, _ = words()
    with torch.no_grad():
        channel = model.model.decoder.embed_tokens.weight[:, 0]
        channel += 8
        channel[used] -= 16
        for layer in model.model.decoder.layers:
            layer.fc1.weight[:SLEEPING] *= 0.1
            layer.fc1.weight[:SLEEPING, 0] = 1.0
            layer.fc1.bias[:SLEEPING] = -1.0
    return model


def quantized(place, model, **settings):
    text = place / "text.txt"
    text.write_text(TEXT)
    done = q2n.quantize(
        model, place / "out", tokenizer=tiny_tokenizer(), corpus=str(text), windows=8, length=32,
        format="native", **settings,
    )  # fmt: skip
    return load_model(done.directory), json.loads((done.directory / "q2n.json").read_text())


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "gptq", "bits": 8},
        {"method": "gptq", "bits": 8, "quality": "good"},
        {"method": "ldlq", "bits": 8, "grid": "minmax"},
        {"method": "leanquant", "bits": 8, "levels": "uniform"},
        {"method": "owq", "bits": 4, "target_rank": 60},
        {"method": "pbllm", "low": "4bit", "low_fraction": 0.5},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_text_of_other_words_stays_close(tmp_path, settings):
    model = sleeping_model()
    _, other = words()
    found, record = quantized(tmp_path, model, **settings)
    tokens = other[torch.randint(len(other), (4, 30), generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        original, now = model(tokens).logits, found(tokens).logits
    assert (original - now).norm() < 0.15 * original.norm()
    dead = [layer["dead_columns"] for layer in record["layers"].values()]
    assert sum(dead) >= SLEEPING and max(dead) < 128
    assert record["notes"] == [
        f"{sum(dead)} input columns in {sum(map(bool, dead))} layers got no input on the "
        "calibration text; their weights are rounded without feedback"
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"quality": "good"},
        {"quality": "good", "correction_held_out": True, "scales_held_out": True},
        {"quality": "best", "refit": "both", "refit_steps": 2},
        {"quality": "good", "nullspace": "paper"},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_a_layer_with_nothing_but_zeros_as_input(tmp_path, settings):
    model = tiny_model(layers=2)
    model.model.layers[0].self_attn.v_proj.weight.data.zero_()
    found, record = quantized(tmp_path, model, bits=8, **settings)
    name = "model.layers.0.self_attn.o_proj"
    assert record["layers"][name]["dead_columns"] == 64
    notes = [x for x in record["notes"] if "given up" not in x]  # of a refit of two steps
    assert notes == [
        "1 linears got nothing but zeros as input on the calibration text, and are rounded without "
        f"feedback or correction: {name}"
    ]
    weight, original = (m.get_submodule(name).weight for m in (found, model))
    assert (weight - original).abs().max() < 0.01 * original.abs().max()


def test_a_layer_with_next_to_no_input_in_a_random_basis(tmp_path):
    """The least scale of the layer before it is not 0: its input is, nearly."""
    model = tiny_model(layers=2)
    model.model.layers[0].self_attn.v_proj.weight.data.zero_()
    found, _ = quantized(tmp_path, model, bits=8, quality="good", method="quip")
    tokens = torch.arange(4, 44)[None]
    expected = model(tokens).logits
    assert (found(tokens).logits - expected).norm() < 0.1 * expected.norm()
