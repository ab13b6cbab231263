"""Words and how texts are cut into them, in llama.cpp as in transformers."""

import json
from pathlib import Path

import pytest
from formats.gguf.checkpoints import (
    LAYERS,
    ODD_TEXTS,
    VOCABULARY,
    byte_level,
    fast,
    gguf_format,
    of_letters,
    save,
    with_bos,
)
from gguf import GGUFReader, TokenType
from llama_cpp import needs_llama_cpp, tokenize_all
from tiny import tiny_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from q2n.errors import InputError
from q2n.formats.gguf.pre_tokenizers import _CL100K, _GPT4O, _QWEN2, _TEKKEN
from q2n.formats.gguf.vocabulary import read_vocabulary
from q2n.models.source import open_source

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _by_pattern(pattern: str) -> list:
    return [pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES]


def _with(tokenizer: Tokenizer, **parts) -> Tokenizer:
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def _metaspace(scheme: str) -> Tokenizer:
    part = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return _with(of_letters(), normalizer=None, pre_tokenizer=part)


_PREPENDED = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
TOKENIZERS = {
    "gpt-2": lambda: byte_level([pre_tokenizers.ByteLevel(False)]),
    "smollm": byte_level,
    "llama-bpe": lambda: with_bos(byte_level(_by_pattern(_CL100K), ignore_merges=True)),
    "dbrx": lambda: byte_level(_by_pattern(_CL100K)),
    "qwen2": lambda: _with(byte_level(_by_pattern(_QWEN2)), normalizer=normalizers.NFC()),
    "tekken": lambda: byte_level(_by_pattern(_TEKKEN), ignore_merges=True),
    "gpt-4o": lambda: byte_level(_by_pattern(_GPT4O)),
    "letters": lambda: with_bos(of_letters()),
    "letters, blank first": lambda: with_bos(of_letters(_PREPENDED)),
    "letters, metaspace": lambda: _metaspace("never"),
}


@needs_llama_cpp
@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_cuts_texts_as_transformers_does(tmp_path: Path, name: str) -> None:
    save(tmp_path / "model", tokenizer=TOKENIZERS[name]())
    gguf_format().write(tmp_path / "out", open_source(tmp_path / "model"), {})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    found = tokenize_all(tmp_path / "out" / "model.gguf", ODD_TEXTS)
    for text, tokens in zip(ODD_TEXTS, found, strict=True):
        assert tokens == tokenizer(text).input_ids, text


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if "letters" not in name])
def test_the_cut_is_known_by_its_structure(tmp_path: Path, name: str) -> None:
    fast(TOKENIZERS[name]()).save_pretrained(tmp_path)
    vocabulary = read_vocabulary(tmp_path, VOCABULARY)
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", name)
    assert vocabulary.adds == {"bos": name == "llama-bpe", "eos": False}


@needs_llama_cpp
@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_blank_before_the_first_word_is_noted_where_it_differs(
    tmp_path: Path, scheme: str
) -> None:
    save(tmp_path / "model", tokenizer=_metaspace(scheme))
    format = gguf_format()
    (note,) = format.container.check(open_source(tmp_path / "model"), LAYERS)
    assert "puts a blank before every text" in note
    format.write(tmp_path / "out", open_source(tmp_path / "model"), {})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = [text for text in ODD_TEXTS if text and text[0] not in " <"]
    found = tokenize_all(tmp_path / "out" / "model.gguf", texts)
    assert found[:3] == [tokenizer(text).input_ids for text in texts][:3]


def test_words_and_their_types(tmp_path: Path) -> None:
    tokenizer = fast(of_letters())
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path)
    words = read_vocabulary(tmp_path, VOCABULARY + 2)
    number_of = tokenizer.get_vocab()
    assert all(words.tokens[number] == word for word, number in number_of.items())
    assert list(words.tokens[-2:]) == [f"[PAD{VOCABULARY}]", f"[PAD{VOCABULARY + 1}]"]
    assert words.types[-1] == TokenType.UNUSED
    types = {word: words.types[number] for word, number in number_of.items()}
    assert types["<s>"] == TokenType.CONTROL and types["<0x0A>"] == TokenType.BYTE
    assert types["grid grid"] == TokenType.USER_DEFINED and types["▁"] == TokenType.NORMAL
    assert words.special == {"bos": 1, "eos": 2, "unk": 3, "pad": 0}
    assert words.chat_templates == {"default": tokenizer.chat_template}


def test_everything_stands_in_the_file(tmp_path: Path) -> None:
    save(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    gguf_format().write(tmp_path / "out", open_source(tmp_path / "model"), {})
    fields = GGUFReader(tmp_path / "out" / "model.gguf").fields
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert fields["tokenizer.ggml.merges"].contents() == [" ".join(pair) for pair in merges]
    assert len(fields["tokenizer.ggml.tokens"].contents()) == VOCABULARY
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2


def test_every_chat_template_stands_in_the_file(tmp_path: Path) -> None:
    save(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = {"default": "one", "tool_use": "two", "rag-1": "three"}
    tokenizer.save_pretrained(tmp_path / "model")
    gguf_format().write(tmp_path / "out", open_source(tmp_path / "model"), {})
    fields = GGUFReader(tmp_path / "out" / "model.gguf").fields
    found = {key: x.contents() for key, x in fields.items() if "chat_template" in key}
    assert found == {
        "tokenizer.chat_template": "one",
        "tokenizer.chat_template.tool_use": "two",
        "tokenizer.chat_template.rag_1": "three",
    }


_SPACED = ("the <|x|>  law", "a<|x|> b <|x|>b", "</s> law")
"""Texts with words that may take blanks."""


def _saved_with(place: Path, *words: AddedToken) -> list[str]:
    """Notes on a model whose tokenizer has these words too."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens(list(words))
    save(place, tokenizer=tokenizer)
    return gguf_format().container.check(open_source(place), LAYERS)


def _agree(place: Path, out: Path) -> bool:
    """Whether llama.cpp has the tokens of transformers."""
    gguf_format().write(out, open_source(place), {})
    tokenizer = AutoTokenizer.from_pretrained(out)
    found = tokenize_all(out / "model.gguf", _SPACED)
    return found == [tokenizer(text).input_ids for text in _SPACED]


@needs_llama_cpp
@pytest.mark.parametrize("rule", ["lstrip", "rstrip", "single_word"])
def test_added_words_that_llama_cpp_treats_otherwise_are_noted(tmp_path: Path, rule: str) -> None:
    (note,) = _saved_with(tmp_path / "model", AddedToken("<|x|>", **{rule: True}))
    assert note.startswith("llama.cpp leaves blanks and letters beside '<|x|>' in the text")
    assert not _agree(tmp_path / "model", tmp_path / "out")


@needs_llama_cpp
def test_in_a_model_called_phi_3_words_take_the_blanks_behind_them(tmp_path: Path) -> None:
    bare = [AddedToken(word) for word in ("<unk>", "<s>", "<|endoftext|>")]
    taking = [AddedToken(word, rstrip=True) for word in ("<pad>", "</s>", "<|x|>")]
    assert _saved_with(tmp_path / "Phi-3-mini", *bare, *taking) == []
    assert _agree(tmp_path / "Phi-3-mini", tmp_path / "out")


@needs_llama_cpp
def test_other_words_than_those_of_phi_3_are_not_taken_for_them(tmp_path: Path) -> None:
    assert _saved_with(tmp_path / "like-phi3", AddedToken("<|x|>")) == []
    assert _agree(tmp_path / "like-phi3", tmp_path / "out")
    fields = GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert "general.name" not in fields


NFKC = normalizers.NFKC()
REFUSED = {
    "no name for the pre-tokenizer": tiny_tokenizer().backend_tokenizer,
    "no name for .*Split": byte_level(_by_pattern(r"\p{N}{1,2}")),
    "changes the text": _with(byte_level(), normalizer=NFKC),
    "changes the text .*NFKC": of_letters(NFKC),
}


@pytest.mark.parametrize("why", REFUSED)
def test_other_tokenizers_are_refused(tmp_path: Path, why: str) -> None:
    fast(REFUSED[why]).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"^{tmp_path}: .*{why}.*--format$"):
        read_vocabulary(tmp_path, VOCABULARY)


def test_scores_cannot_say_every_order_of_merges(tmp_path: Path) -> None:
    described = json.loads(of_letters().to_str())
    merges = described["model"]["merges"]
    merges.append(merges.pop(next(i for i, x in enumerate(merges) if len("".join(x)) == 3)))
    fast(Tokenizer.from_str(json.dumps(described))).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="several places of its order"):
        read_vocabulary(tmp_path, VOCABULARY)


def test_words_beyond_the_embeddings_are_refused(tmp_path: Path) -> None:
    fast(byte_level()).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="word .* and the embeddings have 300 rows"):
        read_vocabulary(tmp_path, 300)


def test_what_is_put_around_a_text_must_be_known(tmp_path: Path) -> None:
    tokenizer = with_bos(byte_level())
    fast(tokenizer).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace('"ids": [\n          1', '"ids": [\n          3'))
    with pytest.raises(InputError, match="puts the begin of text before it"):
        read_vocabulary(tmp_path, VOCABULARY)


def test_without_a_folder_there_is_no_tokenizer() -> None:
    with pytest.raises(InputError, match="save model and tokenizer to a folder"):
        read_vocabulary(None, VOCABULARY)
