"""`q2n eval MODEL --tasks NAMES` and `--generation`: flags, and what is printed."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from q2n.logging import Reporter

TASK_FLAGS = ("tasks", "limit", "shots", "task_dir", "cache", "generation")
"""Names of the flags that mean nothing to the measures on a text."""

Measured = Iterator[tuple[list[dict[str, Any]], list[Any]]]
"""As soon as they are there: a JSON object for each model, and what people see."""


def add_task_flags(parser: ArgumentParser) -> None:
    """What tasks and the generation check take beside the model's own flags."""
    group = parser.add_argument_group("tasks and generation")
    group.add_argument(
        "--tasks",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        metavar="NAMES",
        help="Tasks of lm-evaluation-harness, joined by commas; zeroshot: the papers' seven.",
    )
    group.add_argument(
        "--limit", type=int, help="At most so many questions of a task (of a subject of mmlu)."
    )
    group.add_argument("--shots", type=int, help="Examples in a prompt; default: the task's own.")
    group.add_argument(
        "--task-dir",
        help="New folder for the task configurations that read --data-dir, for lm_eval.",
    )
    group.add_argument("--cache", metavar="FILE", help="JSON file that keeps scores for later.")
    group.add_argument(
        "--generation",
        action="store_true",
        help="Let the model write after 20 prompts, and say how much of it repeats.",
    )


def require_tasks(parsed: Namespace) -> None:
    """Refuse flags that say something of tasks where there are none, and tasks that nobody has.

    Raises:
        InputError: naming the first of them, or as `named_tasks`.
    """
    from q2n.errors import InputError

    of_tasks = ("limit", "shots", "task_dir", "cache")
    given = [name for name in of_tasks if getattr(parsed, name) is not None]
    if given and parsed.tasks is None:
        raise InputError(f"--{given[0].replace('_', '-')} is of tasks: give --tasks NAMES too")
    if parsed.tasks is not None:
        from q2n.evaluation.tasks.evaluate_tasks import named_tasks

        named_tasks(parsed.tasks, parsed.data_dir, shots=parsed.shots)


def task_scores(parsed: Namespace, reporting: Reporter) -> Measured:
    """Scores of each model on tasks."""
    from q2n.api import evaluate_tasks
    from q2n.report.task_tables import task_table

    for model in parsed.models:
        results = evaluate_tasks(
            model,
            tasks=parsed.tasks,
            limit=parsed.limit,
            shots=parsed.shots,
            batch_size=parsed.batch_size,
            data_dir=parsed.data_dir,
            task_dir=parsed.task_dir if model == parsed.models[0] else None,
            cache=parsed.cache,
            reporter=reporting,
            **_loading(parsed),
        )
        yield [{"model": model, **results.to_json()}], [task_table(model, results)]


def generated(parsed: Namespace, reporting: Reporter) -> Measured:
    """What each model writes, the reference first."""
    from dataclasses import asdict

    from q2n.api import evaluate_generation
    from q2n.report.task_tables import generation_table, texts_table

    models = dict.fromkeys(x for x in (parsed.reference, *parsed.models) if x is not None)
    results = {
        model: evaluate_generation(model, reporter=reporting, **_loading(parsed))
        for model in models
    }
    lines = [{"model": model, "generation": asdict(each)} for model, each in results.items()]
    yield lines, [generation_table(results), texts_table(results)]


def _loading(parsed: Namespace) -> dict[str, Any]:
    """How a model is loaded."""
    return {name: getattr(parsed, name) for name in ("device", "dtype", "trust_remote_code")}
