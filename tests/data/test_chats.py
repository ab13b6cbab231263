"""Conversations as calibration text: made by the model's chat template, or refused by line."""

import json

import pyarrow
import pytest
import torch
from pyarrow import parquet
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


def test_a_model_without_a_template_is_refused_before_any_work(tmp_path):
    save_tiny(tmp_path / "model", layers=2)
    (tmp_path / "a.jsonl").write_text(f"{json.dumps({'messages': TALK})}\n" * 99)
    with pytest.raises(InputError, match=r"line 1: .*no chat template"):
        q2n.quantize(
            tmp_path / "model", tmp_path / "out", bits=4, corpus=str(tmp_path / "a.jsonl"), length=8
        )
    assert not list(tmp_path.glob("out*"))
