"""A whole run into a GGUF file: what is refused first, what is said afterwards."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from formats.gguf.checkpoints import VOCABULARY, byte_level, fast, save
from llama_cpp import logits, needs_llama_cpp
from tiny import save_tiny, tiny_text

import q2n
from q2n.errors import InputError
from q2n.formats.gguf.header import read_header
from q2n.formats.load import load_model

pytestmark = pytest.mark.slow
SETTINGS = {"windows": 4, "length": 16, "format": "gguf"}


def quantize(place: Path, **settings):
    (place / "text.txt").write_text(tiny_text())
    return q2n.quantize(
        place / "model",
        place / "out",
        corpus=str(place / "text.txt"),
        **{**SETTINGS, **settings},
    )


@needs_llama_cpp
@pytest.mark.parametrize(
    ("architecture", "options", "settings"),
    [
        ("qwen3", {}, {}),
        ("qwen3_moe", {"num_experts_per_tok": 4}, {}),
        ("qwen3", {"tie_word_embeddings": True}, {"rotate": True, "rotate_online": False}),
    ],
    ids=["dense", "mixture", "rotated"],
)
def test_llama_cpp_predicts_what_our_weights_predict(
    tmp_path: Path, architecture: str, options: dict, settings: dict
) -> None:
    save(tmp_path / "model", architecture, **options)
    quantize(tmp_path, grid="q4_0", output_scales=True, **settings)
    text = fast(byte_level())(tiny_text(4)).input_ids[:64]
    with torch.no_grad():
        ours = load_model(tmp_path / "out")(torch.tensor([text])).logits[0].numpy()
    theirs = logits(tmp_path / "out" / "model.gguf", text)
    assert np.std(theirs - ours) < 0.05 * np.std(ours)  # activations in 8 bits
    assert perplexity(theirs, text) == pytest.approx(perplexity(ours, text), rel=0.02)


@needs_llama_cpp
def test_llama_cpp_reads_layers_of_several_types(tmp_path: Path) -> None:
    save(tmp_path / "model", "qwen3", intermediate_size=128)
    done = quantize(tmp_path, allocate=6.0)
    assert 5.0 < done.record["bits_per_weight"] <= 6.0
    places = read_header(tmp_path / "out" / "model.gguf").tensors.values()
    kinds = {place.kind.name.upper() for place in places}
    assert len(kinds & {"Q2_0", "IQ4_NL", "Q5_0", "Q8_0"}) > 1
    text = fast(byte_level())(tiny_text(4)).input_ids[:64]
    with torch.no_grad():
        ours = load_model(tmp_path / "out")(torch.tensor([text])).logits[0].numpy()
    theirs = logits(tmp_path / "out" / "model.gguf", text)
    assert np.std(theirs - ours) < 0.05 * np.std(ours)


def perplexity(scores: np.ndarray, text: list[int]) -> float:
    scores = scores[:-1].astype(np.float64)
    log_sums = np.log(np.exp(scores).sum(1))
    return math.exp(np.mean(log_sums - scores[np.arange(len(scores)), text[1:]]))


def test_record_and_card_count_what_the_file_holds(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama", tie_word_embeddings=True)
    done = quantize(tmp_path, grid="q4_0", gguf_outside="q5_0", ppl=str(tmp_path / "text.txt"))
    linears = sum(x["shape"][0] * x["shape"][1] for x in done.record["layers"].values())
    embeddings, norms = VOCABULARY * 64, 5 * 64
    assert done.record["bits_per_weight"] == 4.5
    bits = 4.5 * linears + 5.5 * embeddings + 32 * norms
    weights = linears + embeddings + norms
    assert done.record["bits_per_weight_all"] == pytest.approx(bits / weights)
    assert done.record["full_precision_share"] == pytest.approx(norms / weights)
    assert done.record["settings"]["gguf_outside"] == "q5_0"
    assert done.bytes_after == bits / 8
    assert done.comparison is not None and done.comparison.model.perplexity > 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Embeddings and output head are in Q5_0" in card and "- gguf\n" in card
    assert "```sh\nllama-cli -m out/model.gguf" in card and "library_name" not in card


def test_bits_of_embeddings_choose_their_type(tmp_path: Path) -> None:
    """Blocks of 256 do not fill rows of 64 columns: q6_k falls back on q8_0."""
    save(tmp_path / "model", "llama", tie_word_embeddings=True)
    for bits, kind in ((4, "IQ4_NL"), (6, "Q8_0")):
        done = quantize(tmp_path, grid="q8_0", outside_bits=bits)
        tensors = read_header(tmp_path / "out" / "model.gguf").tensors
        assert tensors["token_embd.weight"].kind.name == kind
        outside = [x for name, x in tensors.items() if "blk" not in name or "norm" in name]
        assert done.record["bytes_outside"] == sum(x.size_bytes for x in outside)
        (tmp_path / "out").rename(tmp_path / str(bits))


def test_a_finished_run_is_found_finished(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama")
    first = quantize(tmp_path, grid="q8_0")
    again = quantize(tmp_path, grid="q8_0", resume=True)
    assert again.record == first.record and again.bytes_after == first.bytes_after
    with pytest.raises(InputError, match="gguf_outside"):
        quantize(tmp_path, grid="q8_0", gguf_outside="f16", resume=True)


def test_layers_left_out_stay_in_half_precision(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama")
    quantize(tmp_path, grid="q8_0", ignore=("down_proj",))
    tensors = read_header(tmp_path / "out" / "model.gguf").tensors
    assert tensors["blk.0.ffn_down.weight"].kind.name == "F16"
    assert tensors["blk.0.ffn_up.weight"].kind.name == "Q8_0"


def test_a_model_without_a_place_is_refused_before_any_work(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "phi")
    with pytest.raises(InputError, match="--format gguf writes models of the types"):
        quantize(tmp_path, grid="q8_0")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_the_type_outside_belongs_to_gguf(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    with pytest.raises(InputError, match="add --format gguf, or leave it out"):
        quantize(tmp_path, format="native", gguf_outside="f16")
