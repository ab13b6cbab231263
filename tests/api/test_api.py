"""The whole way: model to checkpoint, crash and resume, every format the same weights."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from whole_way import SETTINGS, files_of, quantize

import q2n
from q2n.data import excerpts
from q2n.errors import InputError, ResumeError
from q2n.formats.load import load_model

pytestmark = pytest.mark.slow


KILLED_RUN = """
import os, signal, sys
import q2n.methods.gptq as gptq
import q2n
plain, count = gptq.GPTQ.quantize, iter(range(1000))
def quantize(self, problem):
    if next(count) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, problem)
gptq.GPTQ.quantize = quantize
place = sys.argv[1]
q2n.quantize(place + "/model", place + "/killed/checkpoint", corpus=place + "/text.txt",
             bits=3, output_scales=True, windows=4, length=16)
"""


@pytest.mark.parametrize("linear", [3, 12, 20])
def test_kill_and_resume_give_the_same_checkpoint(place, linear):
    """Killed in the middle of the first, second and last block."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(q2n.__file__).parents[1]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums round alike
    }
    run = [sys.executable, "-c", KILLED_RUN, str(place), str(linear)]
    killed = subprocess.run(run, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not (place / "killed" / "checkpoint").exists()
    record = q2n.inspect(place / "killed" / "checkpoint")
    assert record["finished_blocks"] == linear // 7
    if linear // 7:  # something would be lost
        with pytest.raises(InputError, match="--resume"):
            quantize(place, "killed")
    quantize(place, "killed", resume=True)
    quantize(place, "whole")
    whole, resumed = (files_of(place / name / "checkpoint") for name in ("whole", "killed"))
    assert whole == resumed


@pytest.mark.parametrize(
    ("change", "name"), [({"bits": 2}, "bits"), ({"seed": 1}, "seed"), ({"windows": 5}, "text")]
)
def test_resume_with_other_settings_is_refused(place, monkeypatch, change, name):
    _interrupt(place, monkeypatch)
    with pytest.raises(ResumeError, match=name):
        quantize(place, "out", resume=True, **change)


def test_resume_with_another_model_or_text_is_refused(place, monkeypatch):
    _interrupt(place, monkeypatch)
    text = (place / "text.txt").read_text()
    (place / "text.txt").write_text(text[::-1])
    with pytest.raises(ResumeError, match="text_sha256"):
        quantize(place, "out", resume=True)
    (place / "text.txt").write_text(text)
    tiny_model(seed=1).save_pretrained(place / "model")
    with pytest.raises(ResumeError, match="model_sha256"):
        quantize(place, "out", resume=True)


def _interrupt(place, monkeypatch):
    """Stop a run after its first block."""
    from q2n.pipeline.store import RunStore

    plain = RunStore.write_block

    def write_once(self, index, *block):
        if index == 1:
            raise KeyboardInterrupt
        plain(self, index, *block)

    with monkeypatch.context() as patched:
        patched.setattr(RunStore, "write_block", write_once)
        with pytest.raises(KeyboardInterrupt):
            quantize(place, "out")


def test_formats_hold_the_same_weights(place):
    """float32 model: all but gptq_v2 have the same scales."""
    for format in ("compressed-tensors", "native", "dequantized"):
        quantize(place, format, format=format)
    folders = {format: place / format / "checkpoint" for format in ("native", "dequantized")}
    dense = AutoModelForCausalLM.from_pretrained(folders["dequantized"])
    read = [
        load_model(place / format / "checkpoint") for format in ("compressed-tensors", "native")
    ]
    for name, tensor in dense.state_dict().items():
        assert all(torch.equal(model.state_dict()[name], tensor) for model in read), name
    by_transformers = AutoModelForCausalLM.from_pretrained(folders["native"])
    prompt = torch.arange(3, 9).unsqueeze(0)
    texts = [
        model.generate(prompt, max_new_tokens=12, do_sample=False)
        for model in (dense, by_transformers, *read)
    ]
    assert all(torch.equal(text, texts[0]) for text in texts)


def test_a_model_object_gives_what_its_checkpoint_gives(place):
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    q2n.quantize(
        model,
        place / "object",
        tokenizer=tiny_tokenizer(),
        corpus=str(place / "text.txt"),
        **SETTINGS,
    )
    quantize(place, "path")
    own = AutoTokenizer.from_pretrained(place / "object")
    assert own.get_vocab() == tiny_tokenizer().get_vocab()
    by_object = load_file(place / "object" / "model.safetensors")
    by_path = load_file(place / "path" / "checkpoint" / "model.safetensors")
    assert by_object.keys() == by_path.keys()
    assert all(torch.equal(by_object[name], by_path[name]) for name in by_path)


def test_tokens_without_an_embedding_are_refused_before_any_block(place):
    with pytest.raises(InputError, match=r"token \d+, which .* vocabulary of 40"):
        q2n.quantize(
            tiny_model(vocab_size=40),
            place / "small",
            tokenizer=tiny_tokenizer(),
            corpus=str(place / "text.txt"),
            **SETTINGS,
        )
    assert not list(place.glob("small*"))


def test_the_record_says_that_a_text_was_drawn_from_excerpts(place, monkeypatch):
    monkeypatch.setattr(excerpts, "WHOLE", 100)
    quantize(place, "long")
    [note] = q2n.inspect(place / "long" / "checkpoint")["notes"]
    assert "excerpts of 'text.txt'" in note
    assert note in (place / "long" / "checkpoint" / "README.md").read_text()


def test_both_perplexities_are_in_record_and_card(place):
    done = quantize(place, "out", ppl=str(place / "text.txt"), ppl_windows=8)
    before, after = done.comparison.reference, done.comparison.model
    assert before.windows == after.windows == 8
    assert done.record["perplexity"]["quantized"]["perplexity"] == after.perplexity
    card = (done.directory / "README.md").read_text()
    assert f"{before.perplexity:.3f}" in card and f"{after.perplexity:.3f}" in card


def test_divergence_is_in_record_and_card_unless_it_is_left_out(place):
    on = {"ppl": str(place / "text.txt"), "ppl_windows": 8}
    done, without = quantize(place, "out", **on), quantize(place, "without", **on, kl=False)
    fidelity = done.comparison.fidelity
    assert done.record["fidelity"]["divergence"] == fidelity.divergence > 0
    card = (done.directory / "README.md").read_text()
    assert f"{fidelity.divergence:.4f}" in card and f"{100 * fidelity.same_top:.2f}" in card
    assert without.comparison.fidelity is None and "fidelity" not in without.record
    # The perplexity comes from another sum of the same numbers.
    assert without.comparison.model.loss == pytest.approx(done.comparison.model.loss, rel=1e-6)


def test_comparing_by_name_gives_what_quantizing_measured(place):
    done = quantize(place, "out", ppl=str(place / "text.txt"), ppl_windows=8, batch_size=1)
    settings = done.record["settings"]
    found = q2n.compare(
        done.directory,
        place / "model",
        ppl=place / "text.txt",
        windows=8,
        length=settings["length"],
    )
    assert found.model.perplexity == done.comparison.model.perplexity
    assert found.fidelity.divergence == done.comparison.fidelity.divergence


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nullspace": "paper", "rule": "guess"}, ["rule", "guess", "matrix_rank"]),
        (
            {"nullspace": "paper", "skip_layers": "*down_proj"},
            ["skip_layers", "'*down_proj'", "list of texts"],
        ),
        ({"output_scales": "guess"}, ["output_scales", "guess", "full_precision"]),
        ({"group_size": "64"}, ["group_size", "'64'", "whole number"]),
        ({"bits": True}, ["bits", "True", "2, 3, 4, 5, 6, 8"]),
    ],
)
def test_options_of_the_wrong_kind_are_refused(place, options, words):
    with pytest.raises(InputError) as failure:
        quantize(place, "out", **options)
    assert all(word in str(failure.value) for word in words)


def test_a_failed_evaluation_leaves_no_half_checkpoint(place, monkeypatch):
    """The blocks stay, the checkpoint does not appear, and --resume needs only to write it."""

    def broken(*_, **__):
        raise InputError("no perplexity today")

    with monkeypatch.context() as patched:
        patched.setattr("q2n.run.compare_written", broken)
        with pytest.raises(InputError, match="today"):
            quantize(place, "out", ppl=str(place / "text.txt"), ppl_windows=4)
    assert not (place / "out" / "checkpoint").exists()
    done = quantize(place, "out", ppl=str(place / "text.txt"), ppl_windows=4, resume=True)
    assert done.record["perplexity"]["quantized"]["windows"] == 4


def test_the_released_preset_takes_overrides(place):
    record = quantize(place, "out", nullspace="released", threshold=0.3).record["settings"]
    assert (record["index"], record["solver"], record["threshold"]) == ("released", "adam", 0.3)


@pytest.mark.parametrize("method", ["pbllm", "leanquant", "owq", "quarot"])
def test_the_released_step_runs_around_each_method_that_its_authors_have(place, method):
    options = {"bits": None} if method == "pbllm" else {}
    done = quantize(place, "out", method=method, nullspace="released", format="native", **options)
    stepped = {name for name, layer in done.record["layers"].items() if "alpha_mean" in layer}
    every = set(done.record["layers"])
    down = {name for name in every if name.endswith("down_proj")}
    assert stepped == (every if method == "quarot" else every - down) and down
    assert done.record["settings"]["reference"] == "compensated"


def test_low_precision_models_store_scales_in_their_dtype(place):
    done = quantize(place, "out", dtype="bfloat16")
    tensors = load_file(done.directory / "model.safetensors")
    scales = [tensor for name, tensor in tensors.items() if name.endswith("weight_scale")]
    assert scales and {scale.dtype for scale in scales} == {torch.bfloat16}
    reloaded = load_model(done.directory)
    assert reloaded.dtype == torch.bfloat16


def test_the_version_is_that_of_the_package():
    """Said in pyproject.toml for pip and in version.py for everybody else."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert q2n.__version__ == project["project"]["version"]
