"""Tasks and generation on the command line."""

import json

import pytest
from task_files import write_plain
from tiny import save_tiny

from q2n.cli.main import main
from q2n.evaluation.generation import PROMPTS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    return str(save_tiny(place / "model", max_position_embeddings=512))


def test_tasks_are_printed_for_a_person_and_for_a_program(model, tmp_path, capfd):
    pytest.importorskip("lm_eval", reason="the harness is not installed")
    data = str(write_plain(tmp_path / "data"))
    command = ["eval", model, "--tasks", "piqa, winogrande", "--data-dir", data, "--limit", "2"]
    assert main(command) == 0
    said = " ".join(capfd.readouterr().out.split())  # a title is broken where the path ends
    assert "piqa" in said and "acc_norm" in said and "first 2 questions" in said and "mean" in said
    assert main([*command, "--json"]) == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [event.get("event") for event in events] == ["task", "task", None]
    assert [task["task"] for task in events[-1]["tasks"]] == ["piqa", "winogrande"]
    assert events[-1]["mean_acc"]["standard_error"] is not None
    assert main([*command, "--quiet"]) == 0
    captured = capfd.readouterr()
    assert captured.out == "" == captured.err


def test_generation_is_shown_beside_the_reference(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("q2n.evaluation.generation.PROMPTS", PROMPTS[:2])
    other = str(save_tiny(tmp_path / "other", max_position_embeddings=512, seed=1))
    command = ["eval", model, "--generation", "--reference", other]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert (
        "distinct-4" in said
        and other[-20:] in "".join(said.split())
        and "The old lighthouse" in said
    )
    assert main([*command, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["model"] for line in found] == [other, model]
    assert found[0]["generation"]["texts"] != found[1]["generation"]["texts"]


def test_something_must_be_asked_for(model, one_line):
    assert main(["eval", model]) == 2
    assert "--ppl CORPUS, --kl-base FILE, --tasks NAMES or --generation" in one_line()


def test_flags_of_tasks_need_tasks(model, one_line):
    assert main(["eval", model, "--generation", "--task-dir", "kept"]) == 2
    assert "--task-dir is of tasks: give --tasks NAMES too" in one_line()


@pytest.mark.parametrize("measure", [["--generation"], ["--kl-base", "b.kl"], ["--tasks", "piqa"]])
@pytest.mark.parametrize(
    "flags",
    [
        ["--windows", "2"],
        ["--split", "train"],
        ["--stride", "4"],
        ["--protocol", "gptq"],
        ["--reference", "other"],
        ["--floor", "0.1"],
    ],
)
def test_flags_of_a_text_need_one(model, one_line, measure, flags):
    if (measure[0], flags[0]) == ("--generation", "--reference"):
        pytest.skip("what a model writes is shown beside a reference")
    assert main(["eval", model, *measure, *flags]) == 2
    assert f"{flags[0]} is of a text, and none is measured" in one_line()


def test_flags_of_a_comparison_mean_nothing_to_a_base_file(model, one_line):
    saved = ["--save-kl-base", "b.kl", "--ppl", "text.txt", "--protocol", "llama.cpp"]
    assert main(["eval", model, *saved, "--reference", model]) == 2
    assert "compares nothing: leave --reference out" in one_line()


def test_an_unknown_task_is_one_line(model, one_line):
    pytest.importorskip("lm_eval", reason="the harness is not installed")
    assert main(["eval", model, "--tasks", "helaswag"]) == 2
    assert "no task is called 'helaswag'; did you mean hellaswag" in one_line()


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["{model}", "--generation", "--tasks", "piqa", "--data-dir", "{model}"], "piqa_valid"),
        (["{model}", "no_such", "--generation"], "no_such"),
        (["{model}", "--generation", "--reference", "no_such"], "no_such"),
        (["{model}", "--generation", "--kl-base", "no_file"], "no_file"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_measured(
    model, one_line, monkeypatch, flags, word
):
    if "--tasks" in flags:
        pytest.importorskip("lm_eval", reason="the harness is not installed")
    measured = []
    monkeypatch.setattr("q2n.api.evaluate_generation", lambda *a, **k: measured.append(a))
    assert main(["eval", *(flag.format(model=model) for flag in flags)]) == 2
    assert word in one_line() and not measured


def test_scores_of_a_model_are_printed_before_the_next_one_runs(
    model, tmp_path, capsys, monkeypatch
):
    """They are not lost where the next one cannot be measured."""
    pytest.importorskip("lm_eval", reason="the harness is not installed")
    data = str(write_plain(tmp_path / "data"))
    broken = save_tiny(tmp_path / "broken", max_position_embeddings=512)
    (broken / "model.safetensors").write_bytes(b"")
    command = ["eval", model, str(broken), "--tasks", "piqa", "--data-dir", data, "--json"]
    assert main(command) == 2
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["model"] == model and last["tasks"][0]["task"] == "piqa"
