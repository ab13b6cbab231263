"""What `evaluate` refuses before it opens anything."""

import json
import math

import pytest
from tiny import save_tiny, tiny_model, tiny_text

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


@pytest.mark.parametrize(
    ("floor", "words"),
    [
        ("float8", "floor is 'float8'; it takes float32"),
        (0.0, "floor is 0.0"),
        (1.5, "floor is 1.5"),
    ],
)
def test_a_floor_that_cannot_be_is_refused_first(tmp_path, floor, words):
    with pytest.raises(InputError, match=words):
        q2n.compare("nowhere", "nowhere", ppl="sotu", floor=floor)


def test_a_floor_of_a_dtype_needs_a_folder(tmp_path):
    with pytest.raises(InputError, match="a model object has the dtype that it has"):
        q2n.compare(tiny_model(), tiny_model(), ppl="sotu", floor="bfloat16")


def test_noise_at_the_floor_diverges_as_its_square(tmp_path):
    """KL is quadratic in a small change of the logits, and the same noise is drawn each time."""
    (tmp_path / "text.txt").write_text(tiny_text())
    folder = save_tiny(tmp_path / "model")
    on = {"length": 16, "windows": 4, "ppl": tmp_path / "text.txt"}
    small, large = (
        q2n.compare(folder, folder, floor=noise, **on).floor.divergence for noise in (0.01, 0.02)
    )
    assert large / small == pytest.approx(4, rel=0.1)


def test_tokenizers_of_other_words_are_refused(tmp_path):
    (tmp_path / "text.txt").write_text(tiny_text())
    folder, other = save_tiny(tmp_path / "model"), save_tiny(tmp_path / "other")
    file = other / "tokenizer.json"
    values = json.loads(file.read_text())
    words = values["model"]["vocab"]
    first, second = list(words)[5:7]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(values))
    with pytest.raises(InputError, match="differ in 4 words"):
        q2n.compare(folder, other, ppl=tmp_path / "text.txt", length=16)


def test_several_models_share_one_reference(tmp_path):
    (tmp_path / "text.txt").write_text(tiny_text())
    folder, other = save_tiny(tmp_path / "model"), save_tiny(tmp_path / "other")
    on = {"length": 16, "windows": 4, "ppl": tmp_path / "text.txt"}
    found = q2n.compare_all([folder, other], folder, **on)
    assert [each.fidelity.divergence for each in found] == [0, 0]
    assert found[0].model.perplexity == q2n.evaluate(folder, **on).perplexity
