"""Converted lines give what the harness makes of the hub's own lines."""

import ast

import pytest
from task_files import plain_lines

from q2n.evaluation.tasks.hub_schema import arc, fields, hellaswag, race


def harness_query(line):
    utils = pytest.importorskip("lm_eval.tasks.hellaswag.utils", reason="the harness's own rule")
    context = line["ctx_a"] + " " + line["ctx_b"].capitalize()
    return utils.preprocess(line["activity_label"] + ": " + context)


@pytest.mark.parametrize(
    ("activity", "ctx_a", "ctx_b"),
    [
        ("Roof repair", "A man sits on a roof.", "he"),
        ("Lifting", "She walks in. She bends down!", "the lady in the Blue shirt"),
        ("Cars", "", "then"),
        ("Tennis", ".", 'a man, named " joe "'),
        ("Health", "How to sleep. Go to bed. Close your eyes.", ""),
        ("Health", "What is this? Nobody knows: ask.", ""),
    ],
)
def test_a_joined_context_is_taken_apart_as_it_was_joined(activity, ctx_a, ctx_b):
    """A plain file says ctx = ctx_a + " " + ctx_b, without the capital of the harness."""
    original = {"activity_label": activity, "ctx_a": ctx_a, "ctx_b": ctx_b}
    joined = f"{ctx_a} {ctx_b}".strip()
    plain = {"query": f"{activity}: {joined}", "endings": ["a", "b"], "label": 1}
    assert harness_query(hellaswag(plain)) == harness_query(original)


def test_double_spaces_that_were_left_stay():
    utils = pytest.importorskip("lm_eval.tasks.hellaswag.utils", reason="the harness's own rule")
    kept = hellaswag({"query": "A: b.", "endings": ["one.  two", "x   y"], "label": 0})
    assert [utils.preprocess(ending) for ending in kept["endings"]] == ["one.  two", "x   y"]


def test_lines_in_the_hub_s_fields_stay_as_they_are():
    line = {"activity_label": "A", "ctx_a": "B [title] c.", "ctx_b": "d", "endings": ["[step] e"]}
    line["label"] = "0"
    assert hellaswag({**line, "ind": 3}) == line
    problem = {"question": "q", "choices": {"text": ["x"], "label": ["1"]}, "answerKey": "1"}
    assert arc({**problem, "id": 7}) == problem
    passage = {"article": "a", "problems": "[{'question': 'q'}]"}
    assert race(passage) == passage


def test_choices_by_index_get_letters():
    converted = arc({"question": "q", "choices": ["u", "v", "w"], "label": 2})
    assert converted["choices"] == {"text": ["u", "v", "w"], "label": ["A", "B", "C"]}
    assert converted["answerKey"] == "C"


def test_questions_of_a_passage_are_joined():
    (line, *_) = plain_lines()["race_high_test.jsonl"]
    problems = ast.literal_eval(race(line)["problems"])
    assert [x["question"] for x in problems] == line["questions"]
    assert [x["answer"] for x in problems] == line["answers"]
    assert problems[0].keys() == {"question", "options", "answer"}


def test_a_missing_field_is_a_key_error():
    for convert in (fields("goal"), hellaswag, arc, race):
        with pytest.raises(KeyError):
            convert({"text": "x"})
