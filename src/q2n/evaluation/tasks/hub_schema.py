"""Lines of local files in the fields of the hub's data sets, which the harness's prompts are
made of.

Each function takes a line as it was read, in the hub's fields or in those of a plainer layout, and
returns the hub's fields; one that is missing raises a `KeyError`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

Line = Mapping[str, Any]
Convert = Callable[[Line], dict[str, Any]]


def fields(*names: str) -> Convert:
    """The hub's fields as they are."""
    return lambda line: {name: line[name] for name in names}


def hellaswag(line: Line) -> dict[str, Any]:
    """From {query: "activity: context", endings, label} too.

    The harness writes the beginning of the sentence that is to be finished (`ctx_b`) with a
    capital. A context that does not end a sentence ends with that beginning; one that does, has
    none.
    """
    if "query" not in line:
        return fields("activity_label", "ctx_a", "ctx_b", "endings", "label")(line)
    activity, _, context = line["query"].partition(": ")
    beginning = re.search(r"(?:^|(?<=[.!?]) )([^.!?]+)$", context)
    before = context[: beginning.start()] if beginning else context
    return {
        "activity_label": activity,
        "ctx_a": _spaces_kept(before),
        "ctx_b": _spaces_kept(beginning[1]) if beginning else "",
        "endings": [_spaces_kept(ending) for ending in line["endings"]],
        "label": line["label"],
    }


def _spaces_kept(text: str) -> str:
    """The harness makes one space of two. In such a file that has been done already."""
    return re.sub(" {2,}", lambda spaces: 2 * spaces[0], text)


def arc(line: Line) -> dict[str, Any]:
    """From {question, choices: [...], label: index} too."""
    if "answerKey" in line:
        return fields("question", "choices", "answerKey")(line)
    letters = [chr(ord("A") + index) for index in range(len(line["choices"]))]
    return {
        "question": line["question"],
        "choices": {"text": line["choices"], "label": letters},
        "answerKey": letters[line["label"]],
    }


def race(line: Line) -> dict[str, Any]:
    """From {article, questions, options, answers} too; the hub has the questions of an article
    as the text of a list."""
    if "problems" in line:
        return fields("article", "problems")(line)
    asked = zip(line["questions"], line["options"], line["answers"], strict=True)
    problems = [{"question": q, "options": options, "answer": a} for q, options, a in asked]
    return {"article": line["article"], "problems": repr(problems)}
