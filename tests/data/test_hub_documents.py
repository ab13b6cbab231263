"""Data sets of the hub by their names: read by the real `datasets`, from files in its place."""

import json

import datasets
import pytest

from q2n.data import hub, hub_documents
from q2n.data.corpora import load_corpus
from q2n.data.hub_documents import HubName
from q2n.data.texts import Texts
from q2n.errors import InputError

REAL = datasets.load_dataset


@pytest.fixture
def hub_of(tmp_path, monkeypatch):
    """A hub whose only data set has these rows in the splits train and held."""

    def install(rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = []

        def load(repository, configuration, *, split, **_):
            asked.append((repository, configuration, split))
            files = {"train": str(file), "held": str(file)}
            cache = str(tmp_path / "cache")
            return REAL("json", data_files=files, split=split, cache_dir=cache)

        monkeypatch.setattr(hub, "hub_answers", lambda: True)
        monkeypatch.setattr("datasets.load_dataset", load)
        return asked

    return install


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hub:org/data", ("org/data", None, None)),
        ("hub:data", ("data", None, None)),
        ("hub:org/data@train_sft", ("org/data", None, "train_sft")),
        ("hub:org/data/en", ("org/data", "en", None)),
        ("hub:org/data/en@test", ("org/data", "en", "test")),
    ],
)
def test_names(name, parts):
    named = HubName.of(name)
    assert (named.repository, named.configuration, named.split) == parts


@pytest.mark.parametrize("name", ["hub:", "hub:a/b/c/d", "hub:a/b@", "hub:a//b", "hub:a@b@c"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(InputError, match="write hub:ORG/NAME"):
        load_corpus(name, "train")


def test_texts_are_joined_as_those_of_a_file(hub_of):
    asked = hub_of([{"id": 1, "text": "one"}, {"id": 2, "text": "two"}])
    corpus = load_corpus("hub:org/data/en", "train")
    assert "".join(corpus.parts) == "".join(corpus.parts) == "one\n\ntwo"
    assert asked == [("org/data", "en", "train")]
    assert corpus.label == "org/data train" and not corpus.notes
    assert load_corpus("hub:org/data@held", "train").label == "org/data held"


def test_conversations_go_through_the_template(hub_of):
    hub_of([{"messages": [{"role": "user", "content": "hello"}]}])
    corpus = load_corpus("hub:org/data", "train", chat=lambda x: f"<{x[0]['content']}>")
    assert "".join(corpus.parts) == "<hello>"
    with pytest.raises(InputError, match="org/data train, row 0: a conversation"):
        list(load_corpus("hub:org/data", "train").parts)


def test_of_many_rows_some_are_read_and_it_is_said(hub_of, monkeypatch):
    monkeypatch.setattr(hub_documents, "MOST_ROWS", 4)
    hub_of([{"text": f"row {number}"} for number in range(9)])
    corpus = load_corpus("hub:org/data", "train")
    assert "".join(corpus.parts) == "row 0\n\nrow 3\n\nrow 6"
    assert corpus.notes == ("Of org/data train one row of 3 is read, 3 in all",)


def test_a_row_without_text_is_named(hub_of, monkeypatch):
    monkeypatch.setattr(hub_documents, "MOST_ROWS", 2)
    hub_of([{"text": 1}, {"text": 2}, {"text": 3}])
    with pytest.raises(InputError, match='org/data train, row 0: "text" is int'):
        list(load_corpus("hub:org/data", "train").parts)


def test_a_row_without_a_value_is_empty(hub_of):
    hub_of([{"text": "a"}, {"text": None}, {"text": "b"}])
    assert "".join(load_corpus("hub:org/data", "train").parts) == "a\n\n\n\nb"


def test_other_columns_are_named_with_the_way_out(hub_of):
    hub_of([{"question": "?", "answer": "!"}])
    with pytest.raises(InputError, match=r"but question, answer; .*texts=\["):
        load_corpus("hub:org/data", "train")


def test_a_split_that_is_not_there_is_named(hub_of):
    hub_of([{"text": "a"}])
    with pytest.raises(InputError, match="hub:org/data@other.*other.*held"):
        load_corpus("hub:org/data@other", "train")


def test_a_split_is_said_in_one_place(hub_of, tmp_path):
    hub_of([{"text": "a b c d e f g h"}])
    texts = Texts(tmp_path)
    with pytest.raises(InputError, match="takes no --split"):
        texts.evaluation("hub:org/data@held", length=4, split="train")
