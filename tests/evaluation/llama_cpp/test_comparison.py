"""A model against a base file, token by token, against the definition word by word."""

import numpy as np
import pytest
import torch
from evaluation.llama_cpp.small_files import (
    in_pieces,
    random_model,
    small_file,
)
from oracles import llama_cpp as oracle

from q2n.errors import InputError, NumericalError
from q2n.evaluation.llama_cpp import scored_logits
from q2n.evaluation.llama_cpp.comparison import compare, compare_tokens
from q2n.evaluation.llama_cpp.records import decode, encode

EPS = torch.finfo(torch.float32).eps


def columns(scored):
    parts = (scored.nll, scored.nll_base, scored.kl, scored.same_top, scored.dp)
    return np.array([part.double().numpy() for part in parts]).T


def by_definition(base, model):
    words, rows = base.layout.n_vocab, []
    size = 8 + 2 * (words + words % 2)
    data = base.path.read_bytes()[20 + 4 * base.tokens.numel() :]
    for tokens in base.tokens:
        targets = tokens[base.layout.n_ctx // 2 + 1 :].tolist()
        for logits, target in zip(model(tokens)[0].tolist(), targets, strict=True):
            log_p_base, data = oracle.read_record(data[:size], words), data[size:]
            rows.append(oracle.token(log_p_base, logits, target))
    assert data == b""
    return np.array(rows)


@pytest.mark.parametrize("words", [7, 64])
def test_equals_the_definition(tmp_path, words):
    base = small_file(tmp_path / "base", words=words, chunks=3, n_ctx=21)
    other = random_model(words, seed=1)
    found, expected = columns(compare(base, other)), by_definition(base, other)
    assert 0 < expected[:, 3].mean() < 1 or words == 64
    # Each log p is rounded a few times at a size below 32.
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * 32 * EPS)


def test_the_model_itself_differs_by_its_16_bits(tmp_path):
    base = small_file(tmp_path / "base", chunks=4, n_ctx=40)
    scored = compare(base, random_model())
    assert scored.same_top.all() and len(scored) == 4 * 19
    assert float(scored.kl.abs().max()) < 1.3e-4
    assert torch.allclose(scored.nll, scored.nll_base, rtol=0, atol=1.3e-4)
    # To second order only the variance of the rounding remains, (1.3e-4)^2 at most, and floats.
    assert abs(float(scored.kl.mean())) < 5e-5


@pytest.mark.parametrize(("size", "at_once"), [(1, 2**21), (4, 2**21), (9, 7), (9, 20)])
def test_pieces_of_any_size_compare_the_same(tmp_path, monkeypatch, size, at_once):
    base = small_file(tmp_path / "base", n_ctx=20)
    whole = compare(base, random_model(seed=1))
    monkeypatch.setattr(scored_logits, "AT_ONCE", at_once)
    pieces = compare(base, in_pieces(random_model(seed=1), size))
    np.testing.assert_array_equal(columns(whole), columns(pieces))


def test_words_below_the_floor_do_not_count():
    """e^-16 is where llama.cpp cuts, and the rest is not renormalised."""
    log_p_base = torch.tensor([[-1e-6, -15.99, -16.0, -17.0]])
    logits = torch.tensor([[2.0, 1.0, -50.0, -torch.inf]])
    found = compare_tokens(log_p_base, logits, torch.tensor([1]))
    expected = oracle.token(log_p_base[0].tolist(), [2.0, 1.0, -50.0, -1e4], 1)
    assert float(found.kl) == pytest.approx(expected[2], abs=1e-6)
    assert float(found.mass_base) == pytest.approx(1 - 1e-6 + np.exp(-15.99), abs=2e-7)


def test_of_equal_choices_the_first_counts():
    """Two logits that differ by less than half a code are equal in the base."""
    base = decode(encode(torch.tensor([[0.0, 4.0, 4.00002, 1.0], [4.0, 4.0, 0.0, 0.0]])))
    logits = torch.tensor([[0.0, 4.0, 4.0, 1.0], [0.0, 4.0, 4.0, 0.0]])
    found = compare_tokens(base, logits, torch.tensor([0, 0]))
    assert found.same_top.tolist() == [True, False]
    assert found.top_base.tolist() == pytest.approx(base.exp().amax(1).tolist())


def test_logits_in_half_precision_are_taken_as_float32(tmp_path):
    base, model = small_file(tmp_path / "base"), random_model(seed=1)
    half = compare(base, lambda tokens: [x.half() for x in model(tokens)])
    full = compare(base, lambda tokens: [x.half().float() for x in model(tokens)])
    np.testing.assert_array_equal(columns(half), columns(full))


def test_tokens_are_those_of_the_text(tmp_path):
    base = small_file(tmp_path / "base")
    seen = []
    compare(base, lambda tokens: seen.append(tokens) or random_model()(tokens))
    assert torch.equal(torch.stack(seen), base.tokens)


def test_progress_counts_chunks(tmp_path):
    steps = []
    compare(small_file(tmp_path / "base", chunks=3), random_model(), progress=steps.append)
    assert steps == [1, 1, 1]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (random_model(9), "logits of 9 words where the base file has 7"),
        (lambda tokens: [random_model()(tokens)[0][1:]], "logits of 4 positions"),
        (lambda tokens: 2 * random_model()(tokens), "logits of 10 positions"),
    ],
)
def test_model_that_does_not_fit_is_refused(tmp_path, model, message):
    with pytest.raises(InputError, match=message):
        compare(small_file(tmp_path / "base"), model)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.nan, "chunk 2 of 2 are not finite"),
        (torch.inf, "chunk 2 of 2 are not finite"),
        (-torch.inf, "probability 0 .* in chunk 2 of 2"),
    ],
)
def test_logits_that_are_not_finite_name_the_chunk(tmp_path, value, message):
    base = small_file(tmp_path / "base")

    def broken(tokens):
        logits = random_model()(tokens)[0]
        if torch.equal(tokens, base.tokens[1]):
            logits[2, :4] = value
        return [logits]

    with pytest.raises(NumericalError, match=message):
        compare(base, broken)


def test_damaged_codes_are_refused(tmp_path):
    base = small_file(tmp_path / "base")
    data = bytearray(base.path.read_bytes())
    start = base.layout.records_start + base.layout.chunk_bytes + 8
    data[start : start + 14] = b"\xff" * 14
    base.path.write_bytes(data)
    with pytest.raises(InputError, match="chunk 2 of 2 of .* do not sum to 1"):
        compare(base, random_model())
