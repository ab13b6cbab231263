"""Tokens of a text in pieces are those of the text as a whole, whatever the tokenizer does."""

import itertools
import random
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from q2n.data import pieces
from q2n.data.pieces import PieceTokenizer, in_chunks
from q2n.data.sotu import addresses
from q2n.errors import InputError

SPECIAL = ["<unk>", "<s>", "</s>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level():
    """GPT-2: splits before spaces, puts one before the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer, trainers.BpeTrainer, {"initial_alphabet": tokenizer.pre_tokenizer.alphabet()}


def digit_triples():
    """Llama 3: a run of digits is cut by threes from its start."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    return tokenizer, trainers.BpeTrainer, {"initial_alphabet": bytes_only.alphabet()}


def no_words():
    """Llama 2: nothing splits the text, merges run over spaces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    return tokenizer, trainers.BpeTrainer, {"special_tokens": SPECIAL + alphabet}


def unigram():
    """T5: the likeliest pieces of words, of text in compatibility form."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer, trainers.UnigramTrainer, {"unk_token": "<unk>"}


def unigram_no_words():
    """The likeliest pieces of the whole text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer, trainers.UnigramTrainer, {"unk_token": "<unk>"}


def word_piece():
    """BERT: lower case without accents; a long word is one unknown token."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordPieceTrainer, {}


EXACT = [byte_level, digit_triples, no_words, unigram, word_piece]
KINDS = [*EXACT, unigram_no_words]  # where rounding chooses among equally likely paths


@cache
def speech():
    return addresses("test")[0][:60_000]


@cache
def trained(kind):
    """Of this kind, on one speech; with a token before and one behind every text."""
    tokenizer, trainer, options = kind()
    lines = [*speech()[:20_000].split("\n"), " " * 40, "a" * 30]
    options = {"special_tokens": SPECIAL, "show_progress": False, **options}
    tokenizer.train_from_iterator(lines, trainer(vocab_size=900, **options))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def whole(tokenizer, text):
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int32)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(pieces, "SIZE", 2048)
    monkeypatch.setattr(pieces, "OVERLAP", 512)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_give_the_tokens_of_the_whole(small, kind):
    tokenizer = PieceTokenizer(trained(kind))
    assert torch.equal(tokenizer.tokens([speech()]), whole(trained(kind), speech()))
    assert not tokenizer.notes


STRANGE = ["a", "aa", " ", "  ", "\n", "\n\n", "\t", "12", "7", "é", "e\u0301", "ﬁ", "😀", "中"]
STRANGE += ["<s>", "</s>", "<unk>", "▁", "\u200d", "\x00", "\r\n", "’s", "'t", "-" * 7, " " * 30]


def strange_text(seed, length):
    """Speech, runs of one thing, and mixtures of few things."""
    stream, parts = random.Random(seed), []
    while sum(map(len, parts)) < length:
        start, few = stream.randrange(20_000), stream.sample(STRANGE, stream.randint(1, 6))
        speaks, mixes = stream.random() < 0.4, stream.random() < 0.7
        mixture = "".join(stream.choice(few) for _ in range(stream.randint(1, 150)))
        run = few[0] * stream.randint(1, 60)
        parts.append(speech()[start : start + 400] if speaks else mixture if mixes else run)
    return "".join(parts)


@pytest.mark.parametrize("kind", EXACT)
def test_strange_text_has_the_same_tokens_or_a_note(monkeypatch, kind):
    monkeypatch.setattr(pieces, "SIZE", 512)
    monkeypatch.setattr(pieces, "OVERLAP", 256)
    same = 0
    for seed in range(20):
        text, tokenizer = strange_text(seed, 3000), PieceTokenizer(trained(kind))
        tokens, expected = tokenizer.tokens([text]), whole(trained(kind), text)
        if not tokenizer.cuts:
            assert torch.equal(tokens, expected)
            same += 1
    assert same >= 5  # at a few hundred characters WordPiece's unknown words often reach across


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXACT)
def test_strange_text_has_the_same_tokens_at_full_size(kind):
    text, tokenizer = strange_text(0, 300_000), PieceTokenizer(trained(kind))
    assert torch.equal(tokenizer.tokens([text]), whole(trained(kind), text))
    assert not tokenizer.notes


@given(text=st.text(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=3))
@settings(deadline=None, max_examples=50)
def test_a_short_text_in_parts_is_what_the_tokenizer_makes_of_it(text, cuts):
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[a:b] for a, b in itertools.pairwise(places)]
    text = "".join(parts)
    expected = whole(trained(byte_level), text)
    assert torch.equal(PieceTokenizer(trained(byte_level)).tokens(parts), expected)


@pytest.mark.parametrize("kind", EXACT)
def test_a_word_longer_than_the_overlap_is_seen_whole(small, kind):
    text = f"{speech()[:1400]} {'x' * 900} {speech()[1400:6000]}"
    tokenizer = PieceTokenizer(trained(kind))
    assert torch.equal(tokenizer.tokens([text]), whole(trained(kind), text))
    assert not tokenizer.notes


def test_special_tokens_stand_once_around_the_text(small):
    tokens = PieceTokenizer(trained(byte_level)).tokens([speech()])
    assert (int(tokens[0]), int(tokens[-1])) == (1, 2)
    assert int((tokens == 1).sum()) == int((tokens == 2).sum()) == 1
    assert PieceTokenizer(trained(byte_level)).tokens([]).tolist() == [1, 2]


def test_no_more_is_read_than_is_enough(small):
    read = []

    def parts():
        for number in itertools.count():
            read.append(number)
            yield speech()[:1000]

    tokens = PieceTokenizer(trained(byte_level)).tokens(parts(), enough=5000)
    assert 5000 <= len(tokens)
    assert len(read) * 1000 < 4 * 5000 + (pieces.AT_ONCE + 2) * 2048
    text = "".join(itertools.islice(parts(), 40))
    assert torch.equal(tokens, whole(trained(byte_level), text)[: len(tokens)])


def test_a_cut_through_a_word_is_noted(small):
    # One word of 20,000 letters: as a whole it is one unknown token.
    tokenizer = PieceTokenizer(trained(word_piece))
    tokens = tokenizer.tokens(["the " * 1000, "x" * 20_000, " the" * 1000])
    assert tokenizer.cuts > 0
    assert "no word ends" in tokenizer.notes[0]
    assert len(tokens) > len(whole(trained(word_piece), "the " * 1000 + "x" * 20_000))


class SlowTokenizer:
    """Says nothing about the places of its tokens."""

    def __call__(self, text, verbose):
        return {"input_ids": [ord(character) for character in text]}


def test_a_slow_tokenizer_gets_the_text_in_one_piece(monkeypatch):
    monkeypatch.setattr(pieces, "WHOLE", 10)
    tokenizer = PieceTokenizer(SlowTokenizer())
    assert tokenizer.tokens(["abc", "", "de"]).tolist() == [97, 98, 99, 100, 101]
    assert tokenizer.tokens([]).tolist() == []
    with pytest.raises(InputError, match="only a fast tokenizer"):
        tokenizer.tokens(["abcdef"] * 2)


@pytest.mark.parametrize("ids", [[None], [2**40], ["a"], "a", [[1], 2]])
def test_a_tokenizer_without_ids_is_refused(ids):
    with pytest.raises(InputError, match="the tokenizer fails on the text"):
        PieceTokenizer(lambda text, verbose: {"input_ids": ids}).tokens(["text"])


def test_a_word_that_the_tokenizer_cannot_have_is_refused():
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "<unk>")))
    with pytest.raises(InputError, match=r"fails on the text.*UNK"):
        PieceTokenizer(fast).tokens(["b"])


@given(st.lists(st.text(max_size=9), max_size=12), st.integers(1, 10))
def test_chunks_are_the_text(parts, size):
    chunks = list(in_chunks(parts, size))
    assert "".join(chunks) == "".join(parts)
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= size for chunk in chunks[-1:])
