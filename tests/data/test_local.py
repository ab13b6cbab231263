"""Local files of every sort: what is text is read, what is not is one line that says where."""

import codecs
import gzip
import json
import os

import pyarrow
import pytest
from pyarrow import parquet

from q2n.data import decoding
from q2n.data.corpora import load_corpus
from q2n.errors import InputError


def text(path):
    return "".join(load_corpus(path, "train").parts)


def refusal(path):
    with pytest.raises(InputError) as caught:
        text(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + b"one")
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + b'{"text": "one"}\r\n{"text": "two"}\r\n')
    assert text(tmp_path / "a.txt") == "one"
    assert text(tmp_path / "a.jsonl") == "one\n\ntwo"


def test_wikitext_lines_from_windows_are_the_same_rows(tmp_path):
    lines = b" \n = A = \n \n one . \n"
    (tmp_path / "unix.raw").write_bytes(lines)
    (tmp_path / "windows.raw").write_bytes(lines.replace(b"\n", b"\r\n"))
    assert text(tmp_path / "windows.raw") == text(tmp_path / "unix.raw")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text".encode("utf-16"), "UTF-16; convert"),
        (gzip.compress(b"text", mtime=0), "gzip; unpack"),
        (b"PK\x03\x04rest", "zip archive; unpack"),
        (b"PAR1rest", "parquet file; rename"),
        (b"caf\xe9", "byte 3"),
        (b"one \xe2\x80", "byte 4"),  # ends within a character
    ],
)
def test_what_is_not_utf8_is_named(tmp_path, content, says):
    (tmp_path / "a.txt").write_bytes(content)
    assert says in refusal(tmp_path / "a.txt")


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_characters_and_bad_bytes_across_chunks(monkeypatch, tmp_path, chunk):
    monkeypatch.setattr(decoding, "CHUNK", chunk)
    (tmp_path / "a.txt").write_bytes("añ中😀\n".encode() * 3)
    assert text(tmp_path / "a.txt") == "añ中😀\n" * 3
    (tmp_path / "a.txt").write_bytes("añ中😀\n".encode() * 3 + b"\xff")
    assert "byte 33" in refusal(tmp_path / "a.txt")


def test_lines_across_chunks(monkeypatch, tmp_path):
    monkeypatch.setattr(decoding, "CHUNK", 5)
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n{"text": "three"}')
    assert text(tmp_path / "a.jsonl") == "one\n\ntwo\n\nthree"


def test_a_line_beyond_memory_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(decoding, "CHUNK", 10)
    monkeypatch.setattr(decoding, "LONGEST_LINE", 40)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a" * 100}))
    assert "a line of more than 40" in refusal(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "line", ["null", "3", "[" * 100_000, '"text"', '{"text": null}', '{"text": "\\ud800"}', "NaN"]
)
def test_json_lines_without_text_are_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "one"}}\n{line}\n')
    assert "line 2" in refusal(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ([["a"]], "list"),
        ([{"a": 1}], "struct"),
        ([1], "int64"),
        ([b"\xff"], "binary"),
    ],
)
def test_parquet_columns_without_strings_are_named(tmp_path, column, says):
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert says in refusal(tmp_path / "a.parquet")


def test_parquet_kinds_of_strings(tmp_path):
    strings = pyarrow.array(["a", None, "a"])
    for kind in (strings, strings.dictionary_encode(), strings.cast(pyarrow.large_string())):
        parquet.write_table(pyarrow.table({"text": kind}), tmp_path / "a.parquet")
        assert text(tmp_path / "a.parquet") == "a\n\n\n\na"
    parquet.write_table(pyarrow.table({"text": pyarrow.nulls(2)}), tmp_path / "a.parquet")
    assert text(tmp_path / "a.parquet") == "\n\n"
    parquet.write_table(pyarrow.table({"text": strings[:0]}), tmp_path / "a.parquet")
    assert text(tmp_path / "a.parquet") == ""


def test_damaged_parquet_is_named(tmp_path):
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["some words"] * 1000}), file)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert "a.parquet" in refusal(file)
    file.write_bytes(b"")
    assert "a.parquet" in refusal(file)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.zip", "a.tar"])
def test_packed_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert "compressed; unpack it" in refusal(tmp_path / name)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("pipe.txt", "zero.txt"):
        assert "not a regular file" in refusal(tmp_path / name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner.txt").mkdir()
    assert "not a regular file" in refusal(tmp_path / "folder")


def test_names_that_lead_nowhere(tmp_path):
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    assert "no corpus" in refusal(tmp_path / "loop.txt")
    assert "cannot be opened" in refusal("a" * 5000)
    assert "cannot be opened" in refusal("~nobody-of-this-name/a.txt")
    assert "no corpus" in refusal("a\0.txt")


def test_a_file_without_permission(monkeypatch, tmp_path):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_text("text")
    corpus = load_corpus(tmp_path / "a.txt", "train")
    monkeypatch.setattr("pathlib.Path.open", forbidden)
    with pytest.raises(InputError, match=r"a\.txt cannot be read: .*Permission denied"):
        list(corpus.parts)


def test_hidden_files_of_a_folder_are_no_text_and_capitals_are(tmp_path):
    (tmp_path / "._a.txt").write_bytes(b"\xff")
    (tmp_path / "B.TXT").write_text("text")
    assert text(tmp_path) == "text"


def test_empty_files_and_control_characters(tmp_path):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.jsonl").write_text("\n\n")
    (tmp_path / "c.txt").write_text("\n\0\n")
    assert text(tmp_path / "a.txt") == text(tmp_path / "b.jsonl") == ""
    assert text(tmp_path) == "\n\n\n\0\n"
