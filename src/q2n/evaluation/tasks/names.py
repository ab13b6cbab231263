"""The tasks by name: short names, and where the harness keeps its configuration of each.

A name is a short name from here or any name of the harness's own (a task, a group such as mmlu, a
tag such as ai2_arc). The harness's index of all its names takes seconds to read, so it is read
only for a name that is not known here.
"""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches

from q2n.errors import InputError
from q2n.option_types import shown

ZEROSHOT = ("hellaswag", "winogrande", "piqa", "arc_easy", "arc_challenge", "mmlu", "race")
"""The seven tasks of the papers on quantization, without examples."""

SHORT_NAMES: Mapping[str, tuple[str, ...]] = {
    "zeroshot": ZEROSHOT,
    "truthfulqa": ("truthfulqa_mc1", "truthfulqa_mc2"),
    "lambada": ("lambada_openai",),
}
"""Short name -> the harness's names of tasks and groups."""

CONFIGURATIONS: Mapping[str, str] = {
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "piqa": "piqa",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "mmlu": "mmlu/default",
    "race": "race",
    "truthfulqa_mc1": "truthfulqa",
    "truthfulqa_mc2": "truthfulqa",
    "lambada_openai": "lambada",
    "gsm8k": "gsm8k",
    "ceval-valid": "ceval",
}
"""Task or group of the harness -> the folder of its configuration under lm_eval/tasks. `race` is
RACE's high-school half."""


def task_names(names: Iterable[str], all_names: Callable[[], Mapping[str, set[str]]]) -> list[str]:
    """The harness's tasks and groups behind names, each once, in order.

    Args:
        all_names: every name that the harness has; tags with their tasks, the others with none.

    Raises:
        InputError: a name that is none, with the nearest that are; or no name at all.
    """
    found: dict[str, None] = {}
    for name in names:
        found |= dict.fromkeys(_tasks_of(name, all_names))
    if not found:
        raise InputError(f"no task is named; give for example {', '.join(ZEROSHOT[:3])}")
    return list(found)


def _tasks_of(name: str, all_names: Callable[[], Mapping[str, set[str]]]) -> list[str]:
    if name in SHORT_NAMES or name in CONFIGURATIONS:
        return list(SHORT_NAMES.get(name, (name,)))
    others = all_names()
    if name not in others:
        raise InputError(_unknown(name, {*SHORT_NAMES, *CONFIGURATIONS}, others))
    return sorted(others[name]) or [name]


def _unknown(name: str, ours: Iterable[str], others: Iterable[str]) -> str:
    close = get_close_matches(name, ours, 2) or get_close_matches(name, others, 3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"for example {', '.join(ZEROSHOT)}"
    return f"no task is called {shown(name)}; {hint}"
