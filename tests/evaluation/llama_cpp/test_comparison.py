"""A model against a base file, token by token, against the definition word by word."""

import numpy as np
import pytest
import torch
from evaluation.llama_cpp.small_files import (
    changed,
    in_pieces,
    random_model,
    random_tokens,
    small_file,
)
from oracles import llama_cpp as oracle
from tiny import VOCABULARY, tiny_model

from q2n.data.windows import TokenWindows
from q2n.errors import InputError, NumericalError
from q2n.evaluation.body import Whole
from q2n.evaluation.fidelity import fidelity_of
from q2n.evaluation.llama_cpp import scored_logits
from q2n.evaluation.llama_cpp.base_file import BaseFile, write_base
from q2n.evaluation.llama_cpp.comparison import compare, compare_tokens
from q2n.evaluation.llama_cpp.layout import Layout
from q2n.evaluation.llama_cpp.records import decode, encode
from q2n.evaluation.llama_cpp.scored_logits import chunk_logits

EPS = torch.finfo(torch.float32).eps


def columns(scored):
    parts = (scored.nll, scored.nll_base, scored.kl, scored.same_top, scored.dp)
    return np.array([part.double().numpy() for part in parts]).T


def by_definition(base, model):
    words, rows = base.layout.n_vocab, []
    size = 8 + 2 * (words + words % 2)
    data = base.path.read_bytes()[20 + 4 * base.tokens.numel() :]
    for tokens, (chunk,) in zip(base.tokens, model(base.tokens), strict=True):
        targets = tokens[base.layout.n_ctx // 2 + 1 :].tolist()
        for logits, target in zip(chunk.tolist(), targets, strict=True):
            log_p_base, data = oracle.read_record(data[:size], words), data[size:]
            rows.append(oracle.token(log_p_base, logits, target))
    assert data == b""
    return np.array(rows)


@pytest.mark.parametrize("words", [7, 64])
def test_equals_the_definition(tmp_path, words):
    base = small_file(tmp_path / "base", words=words, chunks=3, n_ctx=21)
    other = random_model(words, seed=1)
    found, expected = columns(compare(base, other(base.tokens))), by_definition(base, other)
    assert 0 < expected[:, 3].mean() < 1 or words == 64
    # Each log p is rounded a few times at a size below 32.
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * 32 * EPS)


def test_the_model_itself_differs_by_its_16_bits(tmp_path):
    base = small_file(tmp_path / "base", chunks=4, n_ctx=40)
    scored = compare(base, random_model()(base.tokens))
    assert scored.same_top.all() and len(scored) == 4 * 19
    assert float(scored.kl.abs().max()) < 1.3e-4
    assert torch.allclose(scored.nll, scored.nll_base, rtol=0, atol=1.3e-4)
    # To second order only the variance of the rounding remains, (1.3e-4)^2 at most, and floats.
    assert abs(float(scored.kl.mean())) < 5e-5


@pytest.mark.parametrize(("size", "at_once"), [(1, 2**21), (4, 2**21), (9, 7), (9, 20)])
def test_pieces_of_any_size_compare_the_same(tmp_path, monkeypatch, size, at_once):
    base = small_file(tmp_path / "base", n_ctx=20)
    whole = compare(base, random_model(seed=1)(base.tokens))
    monkeypatch.setattr(scored_logits, "AT_ONCE", at_once)
    pieces = compare(base, in_pieces(random_model(seed=1), size)(base.tokens))
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
    half = changed(model, lambda x, _: x.half())
    full = changed(half, lambda x, _: x.float())
    half, full = compare(base, half(base.tokens)), compare(base, full(base.tokens))
    np.testing.assert_array_equal(columns(half), columns(full))


def test_progress_counts_chunks(tmp_path):
    base, steps = small_file(tmp_path / "base", chunks=3), []
    compare(base, random_model()(base.tokens), progress=steps.append)
    assert steps == [1, 1, 1]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (random_model(9), "logits of 9 words where the base file has 7"),
        (changed(random_model(), lambda x, _: x[1:]), "logits of 4 positions"),
        (changed(random_model(), lambda x, _: x.repeat(2, 1)), "logits of 10 positions"),
    ],
)
def test_model_that_does_not_fit_is_refused(tmp_path, model, message):
    base = small_file(tmp_path / "base")
    with pytest.raises(InputError, match=message):
        compare(base, model(base.tokens))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.nan, "chunk 2 of 2 are not finite"),
        (torch.inf, "chunk 2 of 2 are not finite"),
        (-torch.inf, "probability 0 .* in chunk 2 of 2"),
    ],
)
def test_logits_that_are_not_finite_name_the_chunk(tmp_path, value, message):
    def broken(logits, chunk):
        logits[2, :4] = value if chunk == 1 else 0.0
        return logits

    base = small_file(tmp_path / "base")
    with pytest.raises(NumericalError, match=message):
        compare(base, changed(random_model(), broken)(base.tokens))


def test_damaged_codes_are_refused(tmp_path):
    base = small_file(tmp_path / "base")
    data = bytearray(base.path.read_bytes())
    start = base.layout.records_start + base.layout.chunk_bytes + 8
    data[start : start + 14] = b"\xff" * 14
    base.path.write_bytes(data)
    with pytest.raises(InputError, match="chunk 2 of 2 of .* do not sum to 1"):
        compare(base, random_model()(base.tokens))


def test_a_real_model_in_two_parts(tmp_path):
    """Written and compared through its head, a few tokens at a time."""
    n_ctx = 9
    tokens = random_tokens(chunks=3, n_ctx=n_ctx, words=VOCABULARY)
    text = TokenWindows(tokens=tokens, label="random")
    model, other = tiny_model(seed=0), tiny_model(seed=1)
    layout = Layout(n_ctx=n_ctx, n_vocab=VOCABULARY, n_chunks=3)
    write_base(tmp_path / "base", tokens, VOCABULARY, chunk_logits(Whole(model, text), layout))
    base = BaseFile.open(tmp_path / "base")
    windows = base.windows(None)
    found = compare(base, chunk_logits(Whole(other, windows), base.layout, batch_size=2))
    with torch.no_grad():
        whole = [x(tokens).logits[:, n_ctx // 2 : -1].flatten(0, 1) for x in (model, other)]
    rows = zip(*(x.double().log_softmax(1).tolist() for x in whole), strict=True)
    target = tokens[:, n_ctx // 2 + 1 :].flatten().tolist()
    expected = [oracle.token(b, x, t) for (b, x), t in zip(rows, target, strict=True)]
    # The base is of 16 bits, its logits within 16 of the highest: half a code is 1.3e-4.
    np.testing.assert_allclose(columns(found), np.array(expected), rtol=0, atol=3e-4)
    fidelity = fidelity_of(found.per_token(), windows, "base")
    rows = torch.tensor(expected).double().mean(0).tolist()
    assert fidelity.log_ratio == pytest.approx(rows[0] - rows[1], abs=1e-4)
    assert (fidelity.divergence, fidelity.same_top) == pytest.approx((rows[2], rows[3]), abs=3e-4)
    assert len(fidelity.by_window) == 3
