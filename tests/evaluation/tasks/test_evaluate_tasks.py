"""Tasks through the front door, on a tiny model and tiny local files."""

import json
import math
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from task_files import write_mmlu, write_plain
from tiny import save_tiny, tiny_model, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

import q2n
from q2n.errors import InputError, NumericalError
from q2n.evaluation.tasks.harness import result_of

pytest.importorskip("lm_eval", reason="the harness is not installed: pip install q2n[eval]")

SIX = ["hellaswag", "winogrande", "piqa", "arc_easy", "arc_challenge", "race"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model", max_position_embeddings=512)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_plain(tmp_path_factory.mktemp("files") / "data", count=5)


def test_accuracy_is_that_of_log_likelihoods_by_hand(model, data):
    """piqa by its definition, with torch alone."""
    (result,) = q2n.evaluate_tasks(model, tasks=["piqa"], data_dir=data, batch_size=3).tasks
    network, tokenizer = tiny_model(max_position_embeddings=512), tiny_tokenizer()
    right = {"acc": 0, "acc_norm": 0}
    for line in map(json.loads, (data / "piqa_valid.jsonl").read_text().splitlines()):
        prompt = tokenizer(f"Question: {line['goal']}\nAnswer:").input_ids
        choices = [line["sol1"], line["sol2"]]
        sums = []
        for choice in choices:
            words = tokenizer(f" {choice}").input_ids
            tokens = torch.tensor([[*prompt, *words]])
            with torch.no_grad():
                log_p = network(tokens).logits[0].log_softmax(-1)
            at = range(len(prompt) - 1, tokens.shape[1] - 1)
            sums.append(sum(float(log_p[i, w]) for i, w in zip(at, words, strict=True)))
        per_byte = [x / len(choice) for x, choice in zip(sums, choices, strict=True)]
        right["acc"] += (sums[1] > sums[0]) == line["label"]
        right["acc_norm"] += (per_byte[1] > per_byte[0]) == line["label"]
    assert result.scores == {name: count / 5 for name, count in right.items()}
    assert result.documents == 5 and result.shots == 0 and result.version == "1.0"
    p = result.acc
    assert result.standard_errors["acc"] == pytest.approx(math.sqrt(p * (1 - p) / 4))


def test_the_limit_is_the_first_questions(model, data, tmp_path):
    on = {"tasks": ["piqa", "race"], "data_dir": data, "task_dir": tmp_path / "kept"}
    results = q2n.evaluate_tasks(model, limit=2, **on)
    assert [(x.task, x.documents, x.limit) for x in results.tasks] == [
        ("piqa", 2, 2),
        ("race", 2, 2),
    ]
    lines = {file.name: file.read_text() for file in (tmp_path / "kept" / "lines").iterdir()}
    assert {name: text.count("\n") for name, text in lines.items()} == {
        "piqa_validation.jsonl": 2,
        "race_test.jsonl": 2,
    }
    with pytest.raises(InputError, match="kept is not empty"):
        q2n.evaluate_tasks(model, **on)


def test_local_files_need_no_network(model, data, monkeypatch):
    from huggingface_hub import constants

    def refuse(*arguments, **options):
        raise AssertionError("the network is used")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    q2n.evaluate_tasks(model, tasks=["winogrande"], data_dir=data, limit=1)
    assert constants.HF_HUB_OFFLINE is False


def test_every_format_is_measured(data, tmp_path):
    save_tiny(tmp_path / "model", max_position_embeddings=512)
    (tmp_path / "text.txt").write_text("the law of the null space " * 100)
    for format in ("native", "compressed-tensors"):
        out = tmp_path / format
        settings = {"method": "rtn", "bits": 4, "windows": 2, "length": 16, "format": format}
        q2n.quantize(tmp_path / "model", out, corpus=str(tmp_path / "text.txt"), **settings)
        (result,) = q2n.evaluate_tasks(out, tasks=["arc_easy"], data_dir=data).tasks
        assert result.documents == 5


def test_a_cached_result_needs_no_model(model, data, tmp_path, monkeypatch):
    on = {"tasks": ["arc_easy"], "data_dir": data, "cache": tmp_path / "cache.json"}
    first = q2n.evaluate_tasks(model, limit=2, **on)
    assert q2n.evaluate_tasks(model, limit=3, **on).tasks[0].documents == 3
    monkeypatch.setattr("q2n.evaluation.loading.load_model", lambda *a, **k: pytest.fail("loaded"))
    assert q2n.evaluate_tasks(model, limit=2, **on) == first
    other = save_tiny(tmp_path / "other", max_position_embeddings=512, seed=1)
    for changed in ({"model": other}, {"batch_size": 2}, {"shots": 0}, {"dtype": "bfloat16"}):
        with pytest.raises(pytest.fail.Exception):
            q2n.evaluate_tasks(**{"model": model, "limit": 2, **on, **changed})


def test_finished_tasks_are_kept_when_a_later_one_fails(model, data, tmp_path, monkeypatch):
    from q2n.evaluation.tasks.harness import Tasks

    run, on = Tasks.run, {"data_dir": data, "cache": tmp_path / "cache.json"}

    def stopped_in_the_second(self, lm, name, task, **options):
        if name == "piqa":
            raise KeyboardInterrupt
        return run(self, lm, name, task, **options)

    monkeypatch.setattr(Tasks, "run", stopped_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        q2n.evaluate_tasks(model, tasks=["winogrande", "piqa"], **on)
    monkeypatch.setattr("q2n.evaluation.loading.load_model", lambda *a, **k: pytest.fail("loaded"))
    assert q2n.evaluate_tasks(model, tasks=["winogrande"], **on).tasks[0].documents == 5


def test_prompts_begin_with_the_token_that_the_tokenizer_adds():
    from q2n.evaluation.tasks.harness import wrapped

    for adds in (False, True):
        tokenizer = tiny_tokenizer()
        if adds:
            template = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
            tokenizer.backend_tokenizer.post_processor = template
        lm = wrapped(tiny_model(), tokenizer, batch_size=1, answered=lambda: None)
        context, answer = lm._encode_pair("the law", " of")
        assert (context[0] == tokenizer.bos_token_id) == adds
        assert tokenizer.bos_token_id not in [*context[1:], *answer]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"shots": -1}, "shots is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"tasks": []}, "no task is named"),
        ({"tasks": ["piqua"]}, "did you mean piqa"),
        ({"tasks": ["mmlu"]}, "mmlu: mmlu_test.jsonl"),
        ({"shots": 2}, "piqa: piqa_train.jsonl"),
        ({"data_dir": "nowhere"}, "no folder 'nowhere'"),
        ({"device": "meta"}, "device 'meta'"),
        ({"data_dir": None, "task_dir": "kept"}, "give data_dir too"),
    ],
)
def test_what_cannot_be_is_refused_before_any_model(data, wrong, words, tmp_path):
    with pytest.raises(InputError, match=words):
        q2n.evaluate_tasks(tmp_path, **{"tasks": ["piqa"], "data_dir": data, **wrong})


def test_a_harness_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("q2n.evaluation.tasks.harness.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "q2n\[eval\]"'):
        q2n.evaluate_tasks("model", tasks=["piqa"])


def test_a_model_object_is_measured_with_its_tokenizer(data):
    model = tiny_model(max_position_embeddings=512)
    on = {"tasks": ["piqa"], "data_dir": data, "limit": 1}
    assert q2n.evaluate_tasks(model, tokenizer=tiny_tokenizer(), **on).tasks[0].documents == 1
    with pytest.raises(InputError, match="give tokenizer="):
        q2n.evaluate_tasks(model, **on)
    with pytest.raises(InputError, match="leave cache out"):
        q2n.evaluate_tasks(model, tokenizer=tiny_tokenizer(), cache="cache.json", **on)


def test_nan_and_a_model_that_does_not_run_are_named(data, monkeypatch):
    on = {"tasks": ["piqa"], "data_dir": data, "tokenizer": tiny_tokenizer()}
    model = tiny_model(max_position_embeddings=512)
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(NumericalError, match="logits are NaN"):
        q2n.evaluate_tasks(model, **on)
    monkeypatch.setattr("q2n.evaluation.tasks.harness._require_runs", lambda model: None)
    with pytest.raises(NumericalError, match="log-likelihood of an answer to 'Question: "):
        q2n.evaluate_tasks(model, **on)

    def broken(*arguments, **options):
        raise RuntimeError("no such kernel")

    monkeypatch.undo()
    model.model.forward = broken
    with pytest.raises(InputError, match="does not run .*no such kernel"):
        q2n.evaluate_tasks(model, **on)


def test_a_value_of_the_wrong_kind_in_a_file_is_one_line(model, tmp_path):
    folder = write_plain(tmp_path / "data", count=1)
    (folder / "piqa_valid.jsonl").write_text('{"goal": 1, "sol1": null, "sol2": 2, "label": "x"}')
    with pytest.raises(InputError, match="task 'piqa' ") as refused:
        q2n.evaluate_tasks(model, tasks=["piqa"], data_dir=folder)
    assert "\n" not in str(refused.value)


def test_a_group_has_the_examples_of_its_tasks_where_they_agree():
    said = {
        "groups": {"g": {"acc,none": 0.5, "acc_stderr,none": "N/A", "name": "g", "sample_len": 5}},
        "n-samples": {"a": {"effective": 2}, "b": {"effective": 3}},
        "n-shot": {"a": 1, "b": 1},
        "versions": {"g": 2},
        "samples": {},
    }
    result = result_of(said, "g", limit=None, data="hub", seconds=0.0)
    assert (result.documents, result.shots, result.version) == (5, 1, "2")
    assert result.scores == {"acc": 0.5} and result.standard_errors == {"acc": None}
    said["n-shot"]["b"] = 0
    assert result_of(said, "g", limit=None, data="hub", seconds=0.0).shots is None
    with pytest.raises(InputError, match="the group 'h' has no score of its own"):
        result_of({**said, "results": {}}, "h", limit=None, data="hub", seconds=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "shots"), [(SIX, None), (["mmlu"], 1)], ids=["six", "mmlu"])
def test_scores_equal_those_of_the_harness_s_own_command(model, data, tmp_path, tasks, shots):
    """To the last digit, standard errors too; mmlu is a group of 57 tasks, here with examples."""
    write_mmlu(data, mmlu_subjects())
    on = {"data_dir": data, "task_dir": tmp_path / "tasks", "batch_size": 4, "limit": 4}
    ours = q2n.evaluate_tasks(model, tasks=tasks, shots=shots, **on)
    assert_equal(ours, harness_s_own(model, tmp_path, tasks, shots))
    assert tasks == SIX or (ours.tasks[0].documents, ours.tasks[0].shots) == (114, 1)


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_harness_reads_what_q2n_writes(model, data, tmp_path, symmetric):
    """`--model hf` with nothing but the folder."""
    out = tmp_path / "out"
    q2n.quantize(model, out, method="rtn", symmetric=symmetric, dtype="bfloat16")
    on = {"data_dir": data, "task_dir": tmp_path / "tasks", "batch_size": 4, "limit": 4}
    ours = q2n.evaluate_tasks(out, tasks=["piqa", "hellaswag"], **on)
    assert_equal(ours, harness_s_own(out, tmp_path, ["piqa", "hellaswag"]))


def harness_s_own(model, folder, tasks, shots=None):
    """The results that `lm_eval --model hf` writes."""
    flags = ["--include_path", folder / "tasks", "--tasks", ",".join(tasks), "--limit", 4]
    flags += ["--num_fewshot", shots] if shots is not None else []
    flags += ["--batch_size", 4, "--device", "cpu", "--output_path", folder / "theirs"]
    command = ["-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model}", *flags]
    subprocess.run([sys.executable, *map(str, command)], check=True)
    [said] = (folder / "theirs").rglob("results_*.json")
    return json.loads(said.read_text())["results"]


def assert_equal(ours, theirs):
    for result in ours.tasks:
        scores = {f"{name},none": value for name, value in result.scores.items()}
        errors = {f"{name}_stderr,none": x for name, x in result.standard_errors.items()}
        assert {**scores, **errors}.items() <= theirs[result.task].items()


def mmlu_subjects() -> list[str]:
    from lm_eval.tasks import mmlu

    files = Path(mmlu.__path__[0]).glob("default/mmlu_*.yaml")
    return [file.stem.removeprefix("mmlu_") for file in files]
