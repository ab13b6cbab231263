"""Corpora from local files: the rows that the hub has, notes of what is less, and failures."""

import gzip
import json
from typing import ClassVar

import pytest

from q2n.data.corpora import load_corpus
from q2n.data.directory import SHARDS, Directory
from q2n.errors import InputError


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def jsonl(documents):
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def text_of(corpus):
    return "".join(corpus.parts)


@pytest.mark.parametrize(
    ("split", "file"), [("train", "train"), ("validation", "valid"), ("test", "test")]
)
def test_each_split_has_its_file(split, file, tmp_path):
    for name in ("train", "valid", "test"):
        write(tmp_path, f"wikitext2/wiki.{name}.raw", f" = {name} = \n \n".encode())
        write(tmp_path, f"ptb/ptb.{name}.txt", f" {name} of it \n <unk> N \n".encode())
    wikitext2 = load_corpus("wikitext2", split, data_dir=tmp_path)
    assert text_of(wikitext2) == f" = {file} = \n\n\n"
    assert (wikitext2.label, wikitext2.notes) == (f"wikitext2 {split}", ())
    joiner = " " if split == "test" else "\n\n"
    assert text_of(load_corpus("ptb", split, data_dir=tmp_path)) == f"{file} of it{joiner}<unk> N"


def test_the_beginning_of_wikitext2_is_noted(tmp_path):
    write(tmp_path, "wikitext2/wiki.train.head.raw", b" a \n")
    corpus = load_corpus("wikitext2", "train", data_dir=tmp_path)
    assert corpus.notes == (
        "wikitext2 is read from wiki.train.head.raw, which is not all that the published tables "
        "take",
    )
    write(tmp_path, "wikitext2/wiki.train.raw", b" b \n")
    whole = load_corpus("wikitext2", "train", data_dir=tmp_path)
    assert (text_of(whole), whole.notes) == (" b \n", ())


def test_own_files_of_c4_are_divided_between_the_splits(tmp_path):
    write(tmp_path, "c4/a.jsonl", jsonl(["d0", "d1", "d2"]))
    write(tmp_path, "c4/b.jsonl", jsonl(["d3", "d4"]))
    folder = Directory(tmp_path)
    rows = {split: folder.rows("c4", split)[0] for split in SHARDS}
    assert rows == {"train": ["d0", "d2", "d4"], "validation": ["d1", "d3"]}
    assert "a.jsonl, b.jsonl" in load_corpus("c4", "test", data_dir=tmp_path).notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["en", "c4", "c4/en"])
def test_shards_of_c4_are_read_as_they_come(place, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write(tmp_path, "c4/own.jsonl", jsonl(["not this"]))
    for split, file in SHARDS.items():
        write(tmp_path, f"{place}/{file}", gzip.compress(jsonl([f"{split} 0", f"{split} 1"])))
    train = load_corpus("c4", "train", data_dir=tmp_path)
    assert list(train.documents) == ["train 0", "train 1"]
    test = load_corpus("c4", "test", data_dir=tmp_path)
    assert (text_of(test), test.notes) == ("validation 0 validation 1", ())


class TestRefused:
    LOOKED_FOR: ClassVar = {
        ("wikitext2", "test"): r"wikitext2 test: looked for wikitext2/wiki\.test\.raw$",
        ("wikitext2", "train"): r"wikitext2/wiki\.train\.raw, wikitext2/wiki\.train\*\.raw$",
        ("ptb", "validation"): r"looked for ptb/ptb\.valid\.txt$",
        ("c4", "test"): r"c4 validation: looked for en/c4-validation\..*, c4/\*\.jsonl$",
    }

    @pytest.mark.parametrize(("name", "split"), LOOKED_FOR)
    def test_a_missing_file_is_named(self, name, split, tmp_path):
        with pytest.raises(InputError, match=self.LOOKED_FOR[name, split]):
            load_corpus(name, split, data_dir=tmp_path)

    def test_no_folder(self, tmp_path):
        (tmp_path / "file").touch()
        for place in (tmp_path / "absent", tmp_path / "file", "x" * 5000):
            with pytest.raises(InputError, match="there is no folder .*--data-dir"):
                load_corpus("ptb", "test", data_dir=place)

    def test_what_is_no_text(self, tmp_path):
        write(tmp_path, "ptb/ptb.test.txt", b"\xff\xfe")
        with pytest.raises(InputError, match=r"ptb\.test\.txt is not UTF-8"):
            load_corpus("ptb", "test", data_dir=tmp_path)

    @pytest.mark.slow
    def test_a_damaged_shard(self, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
        write(tmp_path, f"en/{SHARDS['train']}", b"no gzip")
        with pytest.raises(InputError, match=r"c4-train.* cannot be read .*fetch it again") as said:
            load_corpus("c4", "train", data_dir=tmp_path)
        assert "\n" not in str(said.value)
