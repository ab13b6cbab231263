"""Tiny local files of tasks, made up, in the two layouts."""

import json
from pathlib import Path

SUBJECTS_FILE = "mmlu_test.jsonl"
WORDS = "law null space error weight row scale code grid input output layer".split()


def write_lines(file: Path, lines: list[dict]) -> None:
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def plain_lines(count: int = 3) -> dict[str, list[dict]]:
    """File -> lines, in the plainer layout."""

    def word(index: int) -> str:
        return WORDS[index % len(WORDS)]

    numbers = range(count)
    arc = [
        {
            "question": f"Which {word(i)}?",
            "choices": [word(i + k) for k in range(4)],
            "label": i % 4,
        }
        for i in numbers
    ]
    return {
        "hellaswag_val.jsonl": [
            {
                "query": f"Code: The {word(i)} is null. the {word(i + 1)}",
                "endings": [f"is {word(i + k)}." for k in range(4)],
                "label": i % 4,
            }
            for i in numbers
        ],
        "winogrande_xl_val.jsonl": [
            {
                "sentence": f"The {word(i)} saw the row so _ was null.",
                "option1": word(i),
                "option2": "the row",
                "answer": str(1 + i % 2),
            }
            for i in numbers
        ],
        "piqa_valid.jsonl": [
            {"goal": word(i), "sol1": f"use {word(i + 1)}", "sol2": "use code", "label": i % 2}
            for i in numbers
        ],
        "arc_easy_test.jsonl": arc,
        "arc_challenge_test.jsonl": arc[::-1],
        "race_high_test.jsonl": [
            {
                "id": f"{i}",
                "article": f"The {word(i)} is a {word(i + 1)}.",
                "questions": ["What is it?", "It is  _  ."],
                "options": [[word(i + k) for k in range(4)]] * 2,
                "answers": ["A", "BCD"[i % 3]],
            }
            for i in numbers
        ],
    }


def write_plain(folder: Path, count: int = 3) -> Path:
    """The files of six tasks."""
    folder.mkdir()
    for name, lines in plain_lines(count).items():
        write_lines(folder / name, lines)
    return folder


def write_mmlu(folder: Path, subjects: list[str], count: int = 2) -> None:
    """mmlu's two files; every question of a subject is another one."""
    lines = [
        {"subject": s, "question": f"{s} {i}?", "choices": WORDS[i : i + 4], "answer": i % 4}
        for s in subjects
        for i in range(count)
    ]
    for name in (SUBJECTS_FILE, "mmlu_dev.jsonl"):
        write_lines(folder / name, lines)
