"""What the documents say of measurements is what the records in docs/results say."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from q2n.experiments.cells import Cell, cells_of
from q2n.experiments.plan_file import read_plan, recipes
from q2n.report.sweeps.report import Report
from q2n.report.sweeps.runs import read_runs
from q2n.report.table_texts import markdown

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "RESULTS.md"


@pytest.fixture(scope="module")
def report() -> Report:
    return Report(read_runs([ROOT / "docs" / "results"]))


def test_the_tables_are_those_of_the_records(report):
    made = markdown(report.tables, report.introduction)
    assert RESULTS.read_text(encoding="utf-8") == made, "run `make results`"


def test_no_record_is_left_out(report):
    assert not report.runs.skipped


def test_records_have_the_keys_of_their_settings(report):
    """A sweep takes a record for its cell by the key. Where this fails after a preset or a default
    has changed: write what it stood for into the settings of the records from before, and key them
    anew, so that the cells are done again."""
    cells = _cells()
    checked, wrong = 0, []
    for record in report.runs.records:
        cell = cells.get((record.plan, *sorted(record.labels.items())))
        if cell is None:
            continue  # of a plan that is no file any more
        checked += 1
        if record.settings is not None:
            cell = replace(
                cell, settings={k: v for k, v in record.settings.items() if k != "model"}
            )
        if (cell.key, cell.id) != (record.key, record.cell):
            wrong.append(f"{record.plan}, {dict(record.labels)}")
    assert checked > 300 and not wrong


def _cells() -> dict[tuple[object, ...], Cell]:
    """Of the plans that records come from, at the scale of this machine."""
    found = {}
    for file in (*recipes().values(), *(ROOT / "benchmarks").glob("*.yaml")):
        plan = read_plan(str(file))
        if "small" in plan.scales:
            plan = read_plan(str(file), "small")
        for cell in cells_of(plan):
            found[plan.name, *sorted(cell.labels.items())] = cell
    return found


@pytest.mark.parametrize("name", ["README.md", "docs/FINDINGS.md"])
def test_figures_with_errors_stand_in_the_tables(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    figures = re.findall(r"[+-]?\d+(?:\.\d+)? \+- \d+(?:\.\d+)?", text)
    results = RESULTS.read_text(encoding="utf-8")
    missing = [figure for figure in figures if figure not in results]
    assert figures and not missing
