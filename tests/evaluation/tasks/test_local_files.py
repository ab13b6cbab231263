"""Which files are needed, and what is said of files that cannot be used."""

import re

import pytest
from task_files import write_lines, write_mmlu, write_plain

from q2n.errors import InputError
from q2n.evaluation.tasks.local_files import (
    LOCAL_TASKS,
    digest,
    files_folder,
    lines_by_subject,
    losses,
    require_files,
)
from q2n.evaluation.tasks.names import CONFIGURATIONS


def test_every_known_task_has_its_files():
    assert LOCAL_TASKS.keys() == CONFIGURATIONS.keys()


def test_missing_files_are_named_with_their_tasks(tmp_path):
    folder = write_plain(tmp_path / "data")
    require_files(folder, ["piqa", "race"], None)
    (folder / "piqa_valid.jsonl").unlink()
    with pytest.raises(InputError, match=r"data \(piqa: piqa_valid.jsonl; mmlu: mmlu_test.jsonl\)"):
        require_files(folder, ["race", "piqa", "mmlu"], None)
    with pytest.raises(InputError, match="'boolq' is not read from local files, only hellaswag"):
        require_files(folder, ["boolq"], None)


def test_the_files_may_lie_beside_corpora(tmp_path):
    assert files_folder(tmp_path) == tmp_path
    (tmp_path / "zeroshot").mkdir()
    assert files_folder(str(tmp_path)) == tmp_path / "zeroshot"
    for wrong in (tmp_path / "none", "x" * 300):
        with pytest.raises(InputError, match="there is no folder"):
            files_folder(wrong)


def test_what_files_have_lost_is_said(tmp_path):
    folder = write_plain(tmp_path / "data")
    [note] = losses(folder, ["piqa", "hellaswag"])
    assert "hellaswag_val.jsonl has endings without marks" in note
    assert losses(folder, ["piqa"]) == []
    write_lines(folder / "hellaswag_val.jsonl", [{"ctx_a": "a"}])
    assert losses(folder, ["hellaswag"]) == []


def test_examples_need_their_file(tmp_path):
    folder = write_plain(tmp_path / "data")
    with pytest.raises(InputError, match=re.escape("(piqa: piqa_train.jsonl)")):
        require_files(folder, ["piqa", "race"], 3)
    with pytest.raises(InputError, match=re.escape("(gsm8k: gsm8k_test.jsonl, gsm8k_train.jsonl)")):
        require_files(folder, ["gsm8k"], None)


def test_lines_are_cut_only_where_no_example_comes_from_them():
    assert LOCAL_TASKS["piqa"].may_be_cut(5) and LOCAL_TASKS["race"].may_be_cut(0)
    assert LOCAL_TASKS["gsm8k"].may_be_cut(None)
    assert not LOCAL_TASKS["race"].may_be_cut(2)


def test_the_first_lines_of_each_subject_are_kept(tmp_path):
    write_mmlu(tmp_path, ["law", "art"], count=3)
    kept = lines_by_subject(tmp_path / "mmlu_test.jsonl", LOCAL_TASKS["mmlu"], 2)
    assert {subject: len(lines) for subject, lines in kept.items()} == {"law": 2, "art": 2}
    assert kept["art"][1]["question"] == "art 1?" and "subject" not in kept["art"][1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}\n{"goal": "g"}\n',
            "line 2: .*'sol1'",
        ),
        ("\n[1]\n", "line 2 is not a JSON object"),
        ("{goal}\n", "line 1 is not JSON"),
        ("\n\n", "has no lines"),
        ('{"goal": "\ud800"}'.encode("utf-8", "surrogatepass"), "is not UTF-8"),
    ],
)
def test_a_damaged_file_is_named_with_the_line(tmp_path, text, words):
    file = tmp_path / "piqa_valid.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"piqa_valid.jsonl.*{words}"):
        lines_by_subject(file, LOCAL_TASKS["piqa"], None)


def test_the_digest_is_of_the_files_that_are_read(tmp_path):
    folder = write_plain(tmp_path / "data")
    before = digest(folder, "piqa", None)
    write_lines(folder / "piqa_train.jsonl", [{"goal": "g"}])
    assert digest(folder, "piqa", None) == before != digest(folder, "piqa", 1)
    write_lines(folder / "piqa_valid.jsonl", [{"goal": "g"}])
    assert digest(folder, "piqa", None) != before
