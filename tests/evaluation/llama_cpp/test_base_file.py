"""The base file byte for byte, and files and models that do not fit."""

import math
import struct

import pytest
import torch
from evaluation.llama_cpp.small_files import (
    changed,
    in_pieces,
    random_model,
    random_tokens,
    small_file,
)

from q2n.errors import InputError, NumericalError
from q2n.evaluation.llama_cpp import scored_logits
from q2n.evaluation.llama_cpp.base_file import BaseFile, write_base
from q2n.evaluation.llama_cpp.records import decode

TOKENS = [4, 0, 1, 2, 3, 4, 0, 1]
STEP = 2.0**-13  # highest - lowest = 65535 steps, so that the scale is one step
CODES = [[0, 65535, 1, 2, 3], [65535, 0, 65534, 0, 7], [40000, 65535, 0, 65535, 1]]


def by_hand():
    """One chunk of 8 tokens, 5 words: header, tokens, then positions 4, 5 and 6."""
    records = b""
    for codes in CODES:
        log_sum = math.log(sum(math.exp((code - 65535) * STEP) for code in codes))
        lowest = -65535 * STEP - log_sum
        records += struct.pack("<ff5HH", STEP, lowest, *codes, 0)
    return b"_logits_" + struct.pack("<iii8i", 8, 5, 1, *TOKENS) + records


def test_written_file_is_that_by_hand(tmp_path):
    write_base(tmp_path / "base", torch.tensor([TOKENS]), 5, [[torch.tensor(CODES) * STEP + 3.0]])
    assert (tmp_path / "base").read_bytes() == by_hand()
    assert [file.name for file in tmp_path.iterdir()] == ["base"]


def test_file_by_hand_is_read(tmp_path):
    (tmp_path / "base").write_bytes(by_hand())
    base = BaseFile.open(tmp_path / "base")
    assert (base.layout.n_ctx, base.layout.n_vocab, base.layout.n_chunks) == (8, 5, 1)
    assert base.tokens.tolist() == [TOKENS] and base.tokens.dtype == torch.int64
    assert (base.layout.first, base.layout.scored) == (4, 3)
    exact = (torch.tensor(CODES) * STEP).double().log_softmax(1)
    assert torch.allclose(decode(base.chunk(0)).double(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_ctx", [3, 4, 7, 8])
def test_each_chunk_is_read_back(tmp_path, n_ctx):
    """Also of an odd n_ctx: positions n_ctx//2 to n_ctx - 2."""
    base = small_file(tmp_path / "base", chunks=3, n_ctx=n_ctx)
    for index, (logits,) in enumerate(random_model()(base.tokens)):
        exact = logits.log_softmax(1)
        assert len(exact) == n_ctx - 1 - n_ctx // 2
        assert torch.allclose(decode(base.chunk(index)), exact, rtol=0, atol=1.3e-4)


@pytest.mark.parametrize(("size", "at_once"), [(1, 2**21), (2, 2**21), (5, 7), (5, 20)])
def test_pieces_of_any_size_write_the_same(tmp_path, monkeypatch, size, at_once):
    whole = small_file(tmp_path / "whole")
    monkeypatch.setattr(scored_logits, "AT_ONCE", at_once)
    write_base(tmp_path / "pieces", whole.tokens, 7, in_pieces(random_model(), size)(whole.tokens))
    assert (tmp_path / "pieces").read_bytes() == whole.path.read_bytes()


def test_logits_in_half_precision_are_taken_as_float32(tmp_path):
    tokens, model = random_tokens(), random_model()
    half = changed(model, lambda x, _: x.bfloat16())
    write_base(tmp_path / "a", tokens, 7, half(tokens))
    write_base(tmp_path / "b", tokens, 7, changed(half, lambda x, _: x.float())(tokens))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def packed(at, value, form="<i"):
    """A change of the bytes at a place of the file."""

    def change(data):
        new = bytearray(data)
        struct.pack_into(form, new, at, value)
        return bytes(new)

    return change


# Two chunks of 12 tokens, 7 words: 20 bytes, 96 of tokens, 2 x 5 records of 8 + 16 bytes.
RECORDS = 116
DAMAGES = {
    "empty": (lambda data: b"", "does not begin with '_logits_'"),
    "another kind": (lambda data: b"GGUF" + data, "does not begin with '_logits_'"),
    "header only": (lambda data: data[:19], "three sizes"),
    "no tokens": (lambda data: data[:20], "ends after 0 of them"),
    "one byte short": (lambda data: data[:-1], "ends after 1 of them"),
    "one byte more": (lambda data: data + b"\0", "has 357 bytes where its 2 chunks take 356"),
    "more chunks": (packed(16, 2**30), "ends after 0 of them"),
    "no chunk": (packed(16, 0), "has 0 chunks of 12 tokens"),
    "negative n_ctx": (packed(8, -12), "chunks of -12 tokens"),
    "negative n_vocab": (packed(12, -7), "out of -7 words"),
    "another n_vocab": (packed(12, 9), "has 356 bytes"),
    "token too high": (packed(20 + 4 * 5, 7), "has token 7, which is outside the vocabulary of 7"),
    "token negative": (packed(20 + 4 * 23, -1), "has token -1"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_file_is_refused_when_it_is_opened(tmp_path, name):
    change, message = DAMAGES[name]
    path = small_file(tmp_path / "base").path
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=f"{path} .*{message}"):
        BaseFile.open(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [(0, math.nan), (0, -1.0), (0, math.inf), (4, math.nan), (4, -math.inf), (4, 1.0)],
)
def test_damaged_chunk_is_refused_when_it_is_read(tmp_path, field, value):
    path = small_file(tmp_path / "base").path
    path.write_bytes(packed(RECORDS + 24 * 6 + field, value, "<f")(path.read_bytes()))
    base = BaseFile.open(path)
    base.chunk(0)
    with pytest.raises(InputError, match="chunk 2 of .* is damaged"):
        base.chunk(1)


def test_file_cut_while_it_is_read_is_refused(tmp_path):
    base = small_file(tmp_path / "base")
    base.path.write_bytes(base.path.read_bytes()[:-30])
    with pytest.raises(InputError, match="chunk 2 of .* is damaged"):
        base.chunk(1)


@pytest.mark.parametrize("name", ["nothing", "."])
def test_no_file_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot be read"):
        BaseFile.open(tmp_path / name)


@pytest.mark.parametrize("bos", [None, 0, 6])
def test_windows_begin_with_the_bos_of_the_model(tmp_path, bos):
    base = small_file(tmp_path / "base", n_ctx=12)
    before, windows = base.tokens.clone(), base.windows(bos)
    assert torch.equal(windows.tokens[:, 1:], base.tokens[:, 1:])
    first = base.tokens[:, 0].tolist() if bos is None else [bos, bos]
    assert windows.tokens[:, 0].tolist() == first and torch.equal(base.tokens, before)
    assert windows.scored.tolist() == 2 * [base.layout.scored]


def test_another_vocabulary_is_refused_with_both_sizes(tmp_path):
    base = small_file(tmp_path / "base")
    base.require_vocabulary(7)
    with pytest.raises(InputError, match=r"has 8 words and .* a model with 7"):
        base.require_vocabulary(8)


@pytest.mark.parametrize(
    ("tokens", "model", "message"),
    [
        (random_tokens(), random_model(words=9), "logits of 9 words where the base file has 7"),
        (random_tokens(n_ctx=2), random_model(), "2 chunks of 2 tokens"),
        (random_tokens(chunks=0), random_model(), "0 chunks"),
        (random_tokens(words=8), random_model(), "token 7, which is outside the vocabulary of 7"),
        (random_tokens(), lambda tokens: [[], []], "logits of 0 positions"),
        (random_tokens(), changed(random_model(), lambda x, _: x.repeat(2, 1)), "of 10 positions"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_file(tmp_path, tokens, model, message):
    with pytest.raises(InputError, match=message):
        write_base(tmp_path / "base", tokens, 7, model(tokens))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 3])
def test_chunks_of_another_number_are_an_error(tmp_path, count):
    tokens = random_tokens()
    with pytest.raises(ValueError, match="zip"):
        write_base(tmp_path / "base", tokens, 7, random_model()(random_tokens(chunks=count)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_name_the_chunk(tmp_path, value):
    def broken(logits, chunk):
        logits[3, 2] = value if chunk == 1 else 0.0
        return logits

    tokens = random_tokens()
    with pytest.raises(NumericalError, match="chunk 2 of 2 are not finite"):
        write_base(tmp_path / "base", tokens, 7, changed(random_model(), broken)(tokens))
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writing_leaves_no_file(tmp_path):
    def interrupted():
        assert (tmp_path / "base.partial").exists() and not (tmp_path / "base").exists()
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        write_base(tmp_path / "base", random_tokens(), 7, interrupted())
    assert list(tmp_path.iterdir()) == []


def never():
    raise AssertionError("the model ran")
    yield


@pytest.mark.parametrize("name", ["base", "base.partial"])
def test_file_that_is_there_is_refused_before_any_work(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name} is there"):
        write_base(tmp_path / "base", random_tokens(), 7, never())
    assert (tmp_path / name).read_text() == "mine"


def test_place_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        write_base(tmp_path / "no" / "base", random_tokens(), 7, never())


def test_full_disk_is_refused_before_any_work(tmp_path):
    tokens = torch.zeros(2**14, 512, dtype=torch.int64)
    with pytest.raises(InputError, match=r"takes \d+.* GB, .* free; .* another --save-kl-base"):
        write_base(tmp_path / "base", tokens, 2**28, never())
    assert list(tmp_path.iterdir()) == []
