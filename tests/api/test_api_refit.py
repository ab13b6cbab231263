"""The whole way with a refit: what it writes, into which formats, and again after a crash."""

from shutil import rmtree

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny, tiny_model, tiny_text, tiny_tokenizer
from transformers import AutoModelForCausalLM
from whole_way import SETTINGS, files_of, quantize

import q2n
from q2n.errors import ResumeError
from q2n.formats.load import load_model
from q2n.pipeline.whole_model import refit_stored
from q2n.refit.tuner import CHECKED

pytestmark = pytest.mark.slow


BEST = {"quality": "best", "bits": 2, "refit_steps": 4}


@pytest.mark.parametrize("format", ["compressed-tensors", "gptq_v2", "native", "dequantized"])
def test_every_format_holds_the_refitted_norm_weights(place, monkeypatch, format):
    stored = {}

    def keep(self):
        stored.update(self.another("refit").norm_weights())
        rmtree(self.folder)

    monkeypatch.setattr("q2n.pipeline.store.RunStore.remove", keep)
    done = quantize(
        place, "out", format=format, **{**BEST, "refit_steps": 16, "bits": 2, "group_size": 32}
    )
    original, found = tiny_model().state_dict(), load_model(done.directory).state_dict()
    assert len(stored) == 7  # two norms a block and the last
    for name, tensor in found.items():
        if "norm" in name:
            assert torch.equal(tensor, stored[name]) and not torch.equal(tensor, original[name])
        elif "_proj" not in name:
            assert torch.equal(tensor, original[name])


@pytest.mark.parametrize("refit", ["block", "model"])
@pytest.mark.parametrize(
    "options",
    [
        {"method": "quip", "bits": 2},
        {"method": "quip", "bits": 2, "grid": "uniform"},
        {
            "method": "quip",
            "bits": 2,
            "incoherence_rescale": True,
            "incoherence_around": "method",
        },
        {"method": "leanquant", "bits": 2},
        {"method": "pbllm", "low_fraction": 0.8},
        {"method": "owq", "bits": 3, "target_bits": 3.2},
    ],
    ids=[
        "quip",
        "quip, even levels",
        "quip with an output scale",
        "codebook",
        "partly binary",
        "outliers",
    ],
)
def test_the_refit_lowers_its_loss_whatever_is_stored(place, monkeypatch, options, refit):
    facts = []

    def keep(self):
        facts.extend(self.another("refit").finished() or self.finished())
        rmtree(self.folder)

    monkeypatch.setattr("q2n.pipeline.store.RunStore.remove", keep)
    settings = {"quality": "best", "refit": refit, "refit_steps": 24, "format": "native"}
    done = q2n.quantize(
        place / "model",
        place / "out",
        corpus=str(place / "text.txt"),
        windows=1,  # so that the losses of all steps are of one text
        length=32,
        **settings,
        **options,
    )
    first, last = facts[0]["model_refit_loss" if refit == "model" else "refit_loss"]
    assert last < first
    name = "model.layers.0.mlp.down_proj"
    weight = load_model(done.directory).get_submodule(name).weight
    assert not torch.equal(weight, tiny_model().get_submodule(name).weight)


def test_the_refit_of_the_model_reads_windows_of_its_own(place, monkeypatch):
    """Drawn anew from the same text, one a step and those of the check."""
    seen = []

    def keep(store, refit, model, windows, **options):
        seen.append(windows.tokens)
        refit_stored(store, refit, model, windows, **options)

    monkeypatch.setattr("q2n.run.refit_stored", keep)
    count = BEST["refit_steps"] + CHECKED  # as many, so that the same ones would have one digest
    plain = quantize(
        place, "plain", **{**BEST, "quality": "good", "refit": "block", "windows": count}
    )
    done = quantize(place, "out", **BEST, windows=count)
    before, settings = plain.record["settings"], done.record["settings"]
    assert len(seen) == 1 and len(seen[0]) == count
    assert settings["text_sha256"] == before["text_sha256"]
    assert before["refit_text_sha256"] is None
    assert settings["refit_text_sha256"] not in (None, settings["text_sha256"])


@pytest.mark.parametrize("refit", ["block", "model", "both"])
@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_refit_leaves_a_model_object_unchanged(tmp_path, architecture, refit):
    """In training mode, where OPT would drop out, and to another dtype than its own."""
    (tmp_path / "text.txt").write_text(tiny_text())
    save_tiny(tmp_path / "model", architecture, layers=2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = {**SETTINGS, **BEST, "refit": refit, "corpus": str(tmp_path / "text.txt")}
    settings |= {"dtype": "bfloat16", "ppl": str(tmp_path / "text.txt"), "ppl_windows": 4}
    by_object = q2n.quantize(model, tmp_path / "a", tokenizer=tiny_tokenizer(), **settings)
    by_path = q2n.quantize(tmp_path / "model", tmp_path / "b", **settings)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    found, expected = (
        load_file(done.directory / "model.safetensors") for done in (by_object, by_path)
    )
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert {t.dtype for name, t in found.items() if "norm" in name} == {torch.bfloat16}


def test_interrupted_refit_resumes_to_the_same_checkpoint(place, monkeypatch):
    """Stopped in the middle of writing what the refit of the model found."""
    from q2n.pipeline.store import RunStore

    plain = RunStore.write_block

    def write_once(self, index, *block):
        if (self.stem, index) == ("refit", 1):
            raise KeyboardInterrupt
        plain(self, index, *block)

    with monkeypatch.context() as patched:
        patched.setattr(RunStore, "write_block", write_once)
        with pytest.raises(KeyboardInterrupt):
            quantize(place, "out", **BEST)
    with pytest.raises(ResumeError, match="refit_steps was 4, is 5"):
        quantize(place, "out", resume=True, **{**BEST, "refit_steps": 5})
    quantize(place, "out", resume=True, **BEST)
    quantize(place, "whole", **BEST)
    whole, resumed = (files_of(place / name / "checkpoint") for name in ("whole", "out"))
    assert whole == resumed
