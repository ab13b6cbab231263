"""The protocol of a run and of an evaluation."""

import pytest
from tiny import save_tiny, tiny_text

import q2n


def test_a_run_and_an_evaluation_take_the_protocol(tmp_path):
    """In a run it says what of the measurement counts, and stands in the record."""
    (tmp_path / "text.txt").write_text(tiny_text())
    model, text = save_tiny(tmp_path / "model"), str(tmp_path / "text.txt")
    settings = {"windows": 2, "length": 16, "protocol": "llama.cpp"}
    done = q2n.quantize(
        model, tmp_path / "out", method="rtn", bits=8, corpus=text, ppl=text, **settings
    )
    measured = done.record["perplexity"]["original"]
    found = q2n.evaluate(model, ppl=text, **{**settings, "windows": measured["windows"]})
    assert measured["protocol"] == found.protocol == "llama.cpp"
    assert done.record["settings"]["protocol"] == "llama.cpp"
    assert found.tokens == 7 * found.windows  # of 16 tokens the last 7 predictions
    assert found.loss == pytest.approx(measured["loss"], rel=1e-6)


def test_windows_of_llama_cpp_have_512_tokens_at_most(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(tiny_text() * 40)
    model = save_tiny(tmp_path / "model", max_position_embeddings=1024)
    found = q2n.evaluate(model, ppl=text, protocol="llama.cpp", windows=1)
    assert (found.length, found.tokens) == (512, 255)
    done = q2n.quantize(
        model,
        tmp_path / "out",
        method="rtn",
        bits=8,
        corpus=str(text),
        ppl=str(text),
        ppl_windows=1,
        protocol="llama.cpp",
        length=600,
    )
    assert done.record["perplexity"]["original"]["length"] == 512
