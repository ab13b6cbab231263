"""The results of a plan as a table: one row for the cells that differ in their seed alone."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from q2n.report.paired import Estimate
from q2n.report.paper import paper_figures, paper_source
from q2n.report.sweeps.naming import ORIGINAL, constant_labels, title_of, varying_axes
from q2n.report.sweeps.rows import Row
from q2n.report.table_model import Cell, Column, Quantity, Table, TableRow, filled

Find = Callable[[Row], Estimate | None]
Show = Callable[[Row], Cell]
Measure = tuple[Column, Show]
"""A column and what it shows of a row."""
GIGABYTE, MEGABYTE = 1e9, 1e6
PAPER = "paper"
NOTES = {
    "bits/weight": "Bits: of the quantized linears, everything stored counted.",
    "MB": "MB: all tensors of the checkpoint, embeddings too.",
    "tokens/s": "Tokens/s: decoded one by one, batch 1.",
    "seconds": "Seconds: the quantization.",
    "KL": "KL: divergence from the original, nats a token.",
    "perplexity": "+-: standard error that comes from the text.",
    "less": "Less ..: difference from that row on the same windows, paired.",
    "difference": "Difference: from the row it is compared with, on the same windows, paired.",
    "acc": "Accuracies: of lm-evaluation-harness; +- from the number of questions.",
}

SPREAD = "In brackets: standard deviation over seeds."


def result_table(plan: str, rows: Sequence[Row]) -> Table | None:
    """All results of one plan, None where nothing was measured. A text that all rows share is named
    once, with what else they share."""
    if not any(row.texts or row.tasks or row.refusals or row.mean("bytes") for row in rows):
        return None
    shown, texts = varying_axes(rows), list(dict.fromkeys(x for row in rows for x in row.texts))
    one_text = {"text": texts[0]} if len(texts) == 1 else {}
    measures = [*_labels(shown), *_on_texts(rows, texts), *_on_tasks(rows), *_costs()]
    measures += _as_printed(plan, rows)
    columns, cells = filled(measures, rows)
    return Table(
        name=plan,
        title=title_of(plan, rows),
        columns=columns,
        rows=[TableRow(own, "; ".join(row.refusals)) for row, own in zip(rows, cells, strict=True)],
        constants={axis: str(value) for axis, value in constant_labels(rows).items()} | one_text,
        notes=_notes(plan, columns, [cell for own in cells for cell in own]),
    )


def _labels(shown: Sequence[str]) -> Iterator[Measure]:
    """The original has its model alone: the first column that it does not fill says what it is, or
    the last one does."""

    def label(axis: str, row: Row) -> str:
        missing = next((x for x in shown if x not in row.labels), shown[-1])
        words = [str(row.labels[axis])] if axis in row.labels else []
        return ", ".join(words + [ORIGINAL] * (row.is_original and axis == missing))

    for axis in shown:
        yield Column(axis, kind="label"), partial(label, axis)
    yield Column("bits/weight"), lambda row: _plain(row.mean("bits_per_weight"), 2)


def _costs() -> Iterator[Measure]:
    yield Column("all weights"), lambda row: _plain(row.mean("bits_per_weight_all"), 2)
    yield Column("MB"), lambda row: _plain(row.mean("bytes"), 1, MEGABYTE)
    yield Column("tokens/s"), lambda row: _plain(row.mean("tokens_per_second"), 0)
    yield Column("seconds"), lambda row: _plain(row.seconds("quantization"), 0)
    yield Column("peak GB"), lambda row: _plain(row.most("peak_bytes"), 2, GIGABYTE)
    yield Column("seeds"), lambda row: _plain(_seeds(row), 0)


def _seeds(row: Row) -> float | None:
    return float(len(row.done)) if any(seed is not None for seed in row.done) else None


def _on_texts(rows: Sequence[Row], texts: Sequence[str]) -> Iterator[Measure]:
    by_key = {row.key: row for row in rows if not row.is_original}

    def divergence(text: str, row: Row) -> Estimate | None:
        return row.on(text).divergence

    def difference(text: str, row: Row) -> Estimate | None:
        other = by_key.get(row.reference_key) if row.reference_key else None
        return row.on(text).less(other.on(text)) if other else None

    for text in texts:
        column = partial(Column, group=text if len(texts) > 1 else "")
        for title, of in (("KL", divergence), (difference_title(rows), difference)):
            yield column(title), _over_seeds(partial(of, text), signed=of is difference)
        yield column("same top %"), _percent(partial(_same_top, text))
        yield column("perplexity"), _shown(partial(_perplexity, text))


def _same_top(text: str, row: Row) -> Estimate | None:
    return row.on(text).same_top


def _perplexity(text: str, row: Row) -> Estimate | None:
    return row.on(text).perplexity


def difference_title(rows: Sequence[Row]) -> str:
    """Says what rows are compared with, where that is one thing."""
    others = {", ".join(map(str, row.first.compare.values())) for row in rows if row.reference_key}
    return f"less {others.pop()}" if len(others) == 1 else "difference"


def _on_tasks(rows: Sequence[Row]) -> Iterator[Measure]:
    column = partial(Column, group="tasks %")
    names = dict.fromkeys(name for row in rows for name in row.tasks)
    for name in names:
        for metric in _metrics(name, rows):
            yield column(f"{name} {metric}"), _percent(partial(_task, name, metric))
    if len(names) > 1:
        for metric in ("acc", "acc_norm"):
            yield column(f"mean {metric}"), _percent(partial(_mean_of_tasks, metric))


def _as_printed(plan: str, rows: Sequence[Row]) -> Iterator[Measure]:
    """What a paper prints for the same cells."""

    def printed(name: str, row: Row) -> Cell:
        return _plain((paper_figures(plan, row.labels) or {}).get(name), 2)

    known = (paper_figures(plan, row.labels) or {} for row in rows)
    for name in dict.fromkeys(name for figures in known for name in figures):
        yield Column(name, PAPER), partial(printed, name)


def _task(name: str, metric: str, row: Row) -> Estimate | None:
    return row.task(name, metric)


def _mean_of_tasks(metric: str, row: Row) -> Estimate | None:
    return row.mean_of_tasks(metric)


def _metrics(task: str, rows: Sequence[Row]) -> list[str]:
    """acc_norm only where it is another number than acc."""
    both = [(row.task(task, "acc"), row.task(task, "acc_norm")) for row in rows]
    return ["acc"] if all(acc == norm for acc, norm in both) else ["acc", "acc_norm"]


def _plain(value: float | None, decimals: int, unit: float = 1.0) -> Cell:
    return None if value is None else Quantity(value / unit, decimals=decimals)


def _shown(of: Find, **how: Any) -> Show:
    return lambda row: Quantity.of(of(row), **how)


def _percent(of: Find) -> Show:
    def cell(row: Row) -> Cell:
        found = of(row)
        return Quantity.of(None if found is None else found.in_percent, decimals=1)

    return cell


def _over_seeds(of: Find, signed: bool) -> Show:
    """With the spread."""

    def cell(row: Row) -> Cell:
        found = of(row)
        spread = found.spread if found else None
        return Quantity.of(found, decimals=3, signed=signed, spread=spread)

    return cell


def _notes(plan: str, columns: Sequence[Column], cells: Sequence[Cell]) -> list[str]:
    titles = " ".join(column.title for column in columns)
    spread = any(isinstance(x, Quantity) and x.spread is not None for x in cells)
    source = [f"Paper: {paper_source(plan)}."] if any(x.group == PAPER for x in columns) else []
    return [note for word, note in NOTES.items() if word in titles] + [SPREAD] * spread + source
