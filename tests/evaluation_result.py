"""A task's result with some scores."""

from q2n.evaluation.tasks.results import TaskResult


def result(task, acc, acc_norm=None, error=0.01, **others):
    scores = {"acc": acc, **({} if acc_norm is None else {"acc_norm": acc_norm})}
    facts = {
        "task": task,
        "scores": scores,
        "standard_errors": dict.fromkeys(scores, error),
        "documents": 10,
        "limit": None,
        "shots": 0,
        "version": "1.0",
        "harness": "0",
        "prompts_sha256": "x",
        "data": "hub",
        "seconds": 1.0,
    }
    return TaskResult(**{**facts, **others})
