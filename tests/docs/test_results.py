"""What the documents say of measurements is what the records in docs/results say."""

import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("name", ["README.md", "docs/FINDINGS.md"])
def test_figures_with_errors_stand_in_the_tables(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    figures = re.findall(r"[+-]?\d+(?:\.\d+)? \+- \d+(?:\.\d+)?", text)
    results = RESULTS.read_text(encoding="utf-8")
    missing = [figure for figure in figures if figure not in results]
    assert figures and not missing
