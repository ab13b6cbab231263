"""The learning of a rotation as a stage of a run."""

import json

import pytest
import torch
from tiny import save_tiny, tiny_text
from transformers import AutoModelForCausalLM

import q2n
from q2n.errors import InputError, ResumeError
from q2n.formats.load import load_model
from q2n.pipeline.sequential import SequentialLoop
from q2n.refit.rotation import RotationLearning

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path):
    """Quantizes a tiny model with a learned rotation."""
    save_tiny(tmp_path / "model", layers=2, tie_word_embeddings=True)
    (tmp_path / "text.txt").write_text(tiny_text())

    def quantize(output="out", **settings):
        plain = {
            "method": "spinquant",
            "clip": "minmax",
            "bits": 8,
            "format": "native",
            "activation_bits": 8,
            "activation_clip_ratio": 1.0,
            "rotate_steps": 3,
            "corpus": str(tmp_path / "text.txt"),
            "windows": 4,
            "length": 16,
        }
        return q2n.quantize(tmp_path / "model", tmp_path / output, **{**plain, **settings})

    return quantize


def tensors(folder):
    return load_model(folder).state_dict()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[x], other[x]) for x in one)


@pytest.fixture
def learnings(monkeypatch):
    """The steps of each learning that was begun."""
    begun, plain = [], RotationLearning.__call__

    def call(self, *args, **kwargs):
        begun.append(self.steps)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(RotationLearning, "__call__", call)
    return begun


@torch.no_grad()
def test_from_the_settings_to_a_loaded_model(run, tmp_path, learnings):
    run(ppl=str(tmp_path / "text.txt"), ppl_windows=2)
    model, original = (
        load_model(tmp_path / "out"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
    )
    tokens = torch.arange(3, 33)[None]
    found, expected = model(tokens).logits, original(tokens).logits
    assert (found - expected).norm() < 0.05 * expected.norm()
    record = json.loads((tmp_path / "out" / "q2n.json").read_text())
    assert record["settings"]["rotate"] == "learned" and record["settings"]["rotate_steps"] == 3
    assert learnings == [3]
    times = json.loads((tmp_path / "out" / "q2n_timings.json").read_text())
    assert times["before"].keys() == {"rotation"} and times["before"]["rotation"] > 0
    run("hadamard", rotate="hadamard", rotate_steps=None)
    assert not equal(tensors(tmp_path / "out"), tensors(tmp_path / "hadamard"))


def test_a_method_without_statistics_learns_too(run, tmp_path, learnings):
    run(method="rtn", rotate="learned")
    assert learnings == [3] and (tmp_path / "out").is_dir()


def test_a_resumed_run_takes_the_stored_turn(run, tmp_path, learnings, monkeypatch):
    run()
    with monkeypatch.context() as patch:
        patch.setattr(SequentialLoop, "run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("other")
    assert (tmp_path / "other.partial" / "turn-00000.json").exists()
    with pytest.raises(InputError, match="holds an interrupted run: go on with --resume"):
        run("other")
    with pytest.raises(ResumeError, match="rotate_steps was 3, is 4"):
        run("other", rotate_steps=4, resume=True)
    run("other", resume=True)
    assert learnings == [3, 3]  # both outputs, once each
    assert equal(tensors(tmp_path / "out"), tensors(tmp_path / "other"))
    assert not (tmp_path / "other.partial").exists()


def test_a_damaged_turn_is_refused(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(SequentialLoop, "run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run()
    file = tmp_path / "out.partial" / "turn-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        ResumeError, match=r"turn-00000.safetensors is damaged .* delete turn-00000"
    ):
        run(resume=True)


def test_interrupted_learning_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr("q2n.refit.rotation.cayley_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run()
    assert sorted(x.name for x in tmp_path.iterdir()) == ["model", "text.txt"]


def test_what_cannot_learn_is_refused_first(run, tmp_path):
    with pytest.raises(InputError, match="nothing is rounded: give --activation-bits"):
        run(activation_bits=16, activation_clip_ratio=None)
    with pytest.raises(InputError, match="'rotate_steps' does nothing without --rotate learned"):
        run(rotate="hadamard")
    save_tiny(tmp_path / "gemma", architecture="gemma2")
    with pytest.raises(InputError, match="cannot be rotated"):
        q2n.quantize(tmp_path / "gemma", tmp_path / "no", method="spinquant", format="native")
    assert not (tmp_path / "out.partial").exists()
