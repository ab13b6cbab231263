"""Protocols: the split that each fixes, the text it reads, and the tables of names."""

from typing import get_args

import pytest
from tiny import tiny_tokenizer

from q2n.data.corpora import load_corpus
from q2n.data.protocols import PROTOCOLS, ProtocolName, measured_split
from q2n.data.texts import Texts
from q2n.errors import InputError

DRAWN = {"gptq": True, "gptq-new": False, "q2n": False, "llama.cpp": False}


def test_every_name_is_that_of_a_protocol():
    assert get_args(ProtocolName) == tuple(PROTOCOLS)


@pytest.mark.parametrize(
    ("protocol", "corpus", "asked", "measured"),
    [
        ("q2n", "ptb", None, "test"),
        ("q2n", "ptb", "validation", "validation"),
        ("gptq", "ptb", None, "validation"),
        ("gptq", "ptb", "validation", "validation"),
        ("gptq-new", "ptb", None, "test"),
        ("gptq", "wikitext2", None, "test"),
        ("gptq-new", "c4", None, "validation"),
        ("gptq", "own.txt", "train", "train"),
        ("llama.cpp", "wikitext2", "validation", "validation"),
    ],
)
def test_the_protocol_fixes_the_split(protocol, corpus, asked, measured):
    assert measured_split(protocol, corpus, asked) == measured


def test_another_split_is_refused():
    with pytest.raises(InputError, match="'gptq' measures ptb on the split 'validation', not on"):
        measured_split("gptq", "ptb", "test")


def test_llama_cpp_reads_a_raw_file_as_it_is(tmp_path):
    text = " \n = A = \n \n one two . \n"
    (tmp_path / "wiki.test.raw").write_text(text)
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2" / "wiki.test.raw").write_text(text)
    for name in (tmp_path / "wiki.test.raw", "wikitext2"):
        corpora = {
            protocol: load_corpus(name, "test", protocol=PROTOCOLS[protocol], data_dir=tmp_path)
            for protocol in ("llama.cpp", "q2n")
        }
        assert "".join(corpora["llama.cpp"].parts) == text
        assert "".join(corpora["q2n"].parts) == "\n\n = A = \n\n\n\n\n one two . \n"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_c4_is_drawn_or_joined(protocol, tmp_path):
    (tmp_path / "c4").mkdir()
    lines = "".join(f'{{"text": "d{i}"}}\n' for i in range(2400))
    (tmp_path / "c4" / "own.jsonl").write_text(lines)
    corpus = load_corpus("c4", "validation", protocol=PROTOCOLS[protocol], data_dir=tmp_path)
    held_out = [f"d{i}" for i in range(1, 2400, 2)]
    assert corpus.drawn == DRAWN[protocol]
    assert corpus.most_windows == 256
    if DRAWN[protocol]:
        assert corpus.documents == held_out
    else:
        assert "".join(corpus.parts) == " ".join(held_out[:1100])


def test_a_split_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one two three four five six seven eight nine ten")
    texts = Texts(None, tiny_tokenizer())
    texts.evaluation(str(tmp_path / "a.txt"), length=4)
    with pytest.raises(InputError, match="a.txt takes no --split: .*leave --split out"):
        texts.evaluation(str(tmp_path / "a.txt"), length=4, split="test")
