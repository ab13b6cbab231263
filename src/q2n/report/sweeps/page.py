"""The page of a report: a summary, then plan by plan, then how it was made."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from markupsafe import Markup

from q2n.report.pages.render import render
from q2n.report.sweeps.gallery import KINDS, pictures
from q2n.report.sweeps.leads import lead_table
from q2n.report.sweeps.naming import title_of
from q2n.report.sweeps.provenance import provenance
from q2n.report.sweeps.report import Report
from q2n.report.sweeps.rows import Row, axes
from q2n.report.table_model import Table

FIGURES = 80
"""In a page, shared evenly by its plans: they take most of its time."""
FEWEST = 4
"""Of a plan, in a page of many plans too."""


@dataclass(frozen=True)
class Gallery:
    """Figures of one kind."""

    title: str
    note: str
    drawings: Sequence[Markup]


@dataclass(frozen=True, kw_only=True)
class PlanPart:
    """What a page shows of one plan."""

    name: str
    title: str
    facts: Mapping[str, str]
    """What was compared, in words."""
    galleries: Sequence[Gallery]
    left_out: bool
    """Whether there are more figures."""
    tables: Sequence[Table]


def render_page(report: Report) -> str:
    """The whole file."""
    share = max(FEWEST, FIGURES // len(report.plans))
    records = report.runs.records
    return render(
        "sweeps",
        report=report,
        leads=lead_table(report.leads) if report.leads else None,
        plans=[_plan_part(report, plan, share) for plan in report.plans],
        made=provenance(records),
        commands=list(dict.fromkeys(record.command for record in records)),
        notes=list(dict.fromkeys(note for record in records for note in record.notes)),
    )


def _plan_part(report: Report, plan: str, share: int) -> PlanPart:
    rows = report.plans[plan]
    found = pictures(plan, rows)
    drawn: dict[str, list[Markup]] = {}
    for kind, picture in islice(found, share):
        drawn.setdefault(kind, []).append(Markup(picture.inline))
    return PlanPart(
        name=plan,
        title=title_of(plan, rows),
        facts=_facts(rows),
        galleries=[Gallery(*KINDS[kind], drawn[kind]) for kind in KINDS if kind in drawn],
        left_out=next(found, None) is not None,
        tables=report.tables_of[plan],
    )


def _facts(rows: Sequence[Row]) -> dict[str, str]:
    """Axes and their places, texts, tasks, and how many cells there are."""
    cells = [cell for row in rows for cell in row.cells.values()]
    refused = sum(cell.refused is not None for cell in cells)
    places = {axis: _each(row.labels.get(axis) for row in rows) for axis in axes(rows)}
    others = {
        "seeds": _each(sorted({x for row in rows for x in row.cells if x is not None}, key=str)),
        "texts": _each(text for row in rows for text in row.texts),
        "tasks": _each(task for row in rows for task in row.tasks),
        "cells": f"{len(cells)}" + (f", {refused} refused" if refused else ""),
    }
    return {name: text for name, text in {**places, **others}.items() if text}


def _each(places: Iterable[object]) -> str:
    return " · ".join(str(x) for x in dict.fromkeys(places) if x is not None)
