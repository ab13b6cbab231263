"""Short names, the harness's names, and names that are none."""

import pytest

from q2n.errors import InputError
from q2n.evaluation.tasks.names import CONFIGURATIONS, SHORT_NAMES, ZEROSHOT, task_names

OTHERS = {"boolq": set(), "ai2_arc": {"arc_easy", "arc_challenge"}, "hellaswag_ar": set()}


def names(*asked):
    return task_names(asked, lambda: OTHERS)


def test_short_names_stand_for_the_harness_s_tasks():
    assert tuple(names("zeroshot")) == ZEROSHOT and len(ZEROSHOT) == 7
    assert names("truthfulqa", "lambada") == ["truthfulqa_mc1", "truthfulqa_mc2", "lambada_openai"]
    assert {task for tasks in SHORT_NAMES.values() for task in tasks} <= set(CONFIGURATIONS)


def test_each_task_comes_once_in_order():
    assert names("race", "zeroshot", "race")[:2] == ["race", "hellaswag"]
    assert len(names("race", "zeroshot")) == 7


def test_the_long_index_is_read_only_for_other_names():
    assert task_names(["gsm8k", "ceval-valid"], lambda: pytest.fail("read")) == [
        "gsm8k",
        "ceval-valid",
    ]
    assert names("boolq", "ai2_arc") == ["boolq", "arc_challenge", "arc_easy"]


def test_an_unknown_name_gets_the_nearest():
    for wrong, near in (("helaswag", "hellaswag"), ("bolq", "boolq"), ("zero-shot", "zeroshot")):
        with pytest.raises(InputError, match=f"no task is called '{wrong}'; did you mean {near}"):
            names(wrong)
    with pytest.raises(InputError, match="for example hellaswag"):
        names("xxxxxx")
    with pytest.raises(InputError, match="no task is named"):
        names()
