"""What `evaluate` refuses before it opens anything."""

import math

import pytest
from tiny import save_tiny, tiny_text

import q2n
from q2n.errors import InputError


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"length": 1}, "length is 1"),
        ({"length": 10**30}, "length is 1000"),
        ({"windows": 0}, "windows is 0"),
        ({"windows": True}, "windows is True"),
        ({"stride": -1}, "stride is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 10**12}, "batch_size is 1000000000000"),
        ({"device": "meta"}, "device 'meta' cannot be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"dtype": "float8"}, "dtype 'float8' is not one of"),
        ({"ppl": "a\0b"}, "ppl is"),
    ],
)
def test_conditions_that_cannot_be_get_one_line(tmp_path, wrong, words):
    with pytest.raises(InputError, match=words) as refused:
        q2n.evaluate(save_tiny(tmp_path / "model"), **{"ppl": "wikitext2", **wrong})
    assert "\n" not in str(refused.value)


def test_a_model_without_a_name_is_not_the_folder_of_the_call(tmp_path, monkeypatch):
    monkeypatch.chdir(save_tiny(tmp_path / "model"))
    for name, words in (("", "no model is named"), ("x" * 300, "neither a folder")):
        with pytest.raises(InputError, match=words):
            q2n.evaluate(name, ppl="sotu")


def test_a_text_may_be_a_path(tmp_path):
    (tmp_path / "text.txt").write_text(tiny_text())
    folder = save_tiny(tmp_path / "model")
    settings = {"length": 16, "windows": 2, "ppl": tmp_path / "text.txt"}
    assert math.isfinite(q2n.evaluate(folder, **settings).perplexity)
