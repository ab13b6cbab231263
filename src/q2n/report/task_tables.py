"""Scores of tasks and the generation check as tables on a terminal."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from q2n.evaluation.generation import PROMPTS, GenerationResult
from q2n.evaluation.tasks.results import TaskResult, TaskResults
from q2n.report.tables import figure

WITHIN = "acc", "acc_norm"


def task_table(model: str, results: TaskResults) -> Table:
    """One row a task, accuracies in percent with their standard errors, and their mean."""
    table = Table(
        title=f"{escape(model)}: {_title(results.tasks)}", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    table.add_column("task", no_wrap=True)
    for title in ("acc %", "acc_norm %", "others", "questions", "shots", "version"):
        table.add_column(title, justify="right")
    for result in results.tasks:
        table.add_row(
            escape(result.task),
            *(_percent(result.scores.get(x), result.standard_errors.get(x)) for x in WITHIN),
            "\n".join(_others(result)),
            str(result.documents),
            "-" if result.shots is None else str(result.shots),
            result.version or "-",
        )
    means = [mean for metric in WITHIN if (mean := results.mean(metric)) is not None]
    if len(results.tasks) > 1 and means:
        table.add_section()
        table.add_row("mean", *(_percent(x.value, x.standard_error) for x in means))
        table.caption = "mean of acc_norm: acc of tasks that have no acc_norm"
    return table


def _title(results: Sequence[TaskResult]) -> str:
    first = results[0]
    limit = f", first {first.limit} questions of each" if first.limit else ""
    source = "local files" if first.data == "files" else "the hub's data"
    return f"lm-evaluation-harness {first.harness}, {source}{limit}"


def _others(result: TaskResult) -> list[str]:
    return [
        f"{escape(metric)} {figure(value, result.standard_errors.get(metric))}"
        for metric, value in result.scores.items()
        if metric not in WITHIN
    ]


def _percent(value: float | None, error: float | None) -> str:
    return "-" if value is None else figure(value, error, percent=True)


def generation_table(results: Mapping[str, GenerationResult]) -> Table:
    """One column a model."""
    table = Table(title="greedy text after 20 prompts", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("")
    for label in results:
        table.add_column(escape(label), justify="right")
    written = list(results.values())
    table.add_row("repeated 4-grams %", *(f"{100 * x.repetition:.1f}" for x in written))
    table.add_row("texts that end in a loop %", *(f"{100 * x.loops:.0f}" for x in written))
    for n in range(4):
        table.add_row(f"distinct-{n + 1}", *(f"{x.distinct[n]:.3f}" for x in written))
    table.add_row("tokens a text", *(f"{x.tokens:.1f}" for x in written))
    return table


def texts_table(results: Mapping[str, GenerationResult], count: int = 2) -> Table:
    """What each model wrote after the first prompts, side by side."""
    table = Table(box=box.SIMPLE, show_lines=True)
    for label in ("prompt", *results):
        table.add_column(escape(label), overflow="fold", ratio=1 if label == "prompt" else 3)
    for row, prompt in enumerate(PROMPTS[:count]):
        table.add_row(escape(prompt), *(escape(x.texts[row].strip()) for x in results.values()))
    return table
