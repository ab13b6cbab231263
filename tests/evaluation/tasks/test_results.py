"""Means of tasks, and what is kept of them."""

import numpy as np
import pytest
from evaluation_result import result

from q2n.evaluation.tasks.results import TaskResult, TaskResults
from q2n.report.task_tables import task_table


def test_both_means_and_acc_where_there_is_no_acc_norm():
    both = TaskResults((result("piqa", 0.6, 0.7), result("mmlu", 0.3)))
    assert both.mean("acc").value == pytest.approx(0.45)
    assert both.mean("acc_norm").value == pytest.approx(0.5)


def test_the_error_of_a_mean_is_that_of_independent_tasks():
    errors = [0.1, 0.3, 0.2]
    drawn = np.random.default_rng(0).normal(0, errors, (200_000, 3)).mean(1).std()
    tasks = TaskResults(tuple(result("t", 0.5, error=e) for e in errors))
    assert tasks.mean("acc").standard_error == pytest.approx(drawn, rel=0.01)
    assert TaskResults((result("t", 0.5, error=None),)).mean("acc").standard_error is None


def test_no_mean_over_a_task_without_accuracy():
    other = result("gsm8k", 0, scores={"exact_match": 0.1}, standard_errors={"exact_match": None})
    assert TaskResults((result("piqa", 0.5), other)).mean("acc") is None
    assert task_table("m", TaskResults((other,))).row_count == 1


def test_json_and_back():
    one = result("piqa", 0.6, 0.7)
    assert TaskResult.from_json(one.to_json()) == one
    assert TaskResults((one,)).to_json()["mean_acc_norm"]["value"] == 0.7
