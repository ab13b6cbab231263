"""Records in which something was changed at random: they are named and left out, or shown."""

import copy
import io
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from sweep_records import sweep

from q2n.errors import InputError
from q2n.report.sweeps.page import render_page
from q2n.report.sweeps.report import Report
from q2n.report.sweeps.runs import read_runs
from q2n.report.table_texts import comma_separated, markdown, print_table

pytestmark = pytest.mark.slow

RECORDS = [record.to_json() for record in sweep(seeds=(0, 1))[:6]]
GARBAGE: list[Any] = [None, 0, -1, 1e300, -1e300, 1e-300, "", "x" * 300, "$\\frac", [], {}, [0]]
GARBAGE += [[None], {"a": 1}, True, 10**20, "3", {"q_proj": None}, float("nan")]
TIMES = 60


def places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """Of everything in a record; of a list its beginning."""
    if place:
        yield place
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*place, key))
    elif isinstance(value, list):
        for number in range(min(len(value), 3)):
            yield from places(value[number], (*place, number))


def damaged(chance: random.Random) -> list[dict[str, Any]]:
    records = copy.deepcopy(RECORDS)
    value: Any = chance.choice(records)
    *above, last = chance.choice(list(places(value)))
    for key in above:
        value = value[key]
    if chance.random() < 0.15:
        del value[last]
    else:
        value[last] = chance.choice(GARBAGE)
    return records


def test_a_damaged_record_ends_in_no_traceback(tmp_path) -> None:
    file, skipped = tmp_path / "runs.jsonl", 0
    for seed in range(TIMES):
        file.write_text("".join(f"{json.dumps(x)}\n" for x in damaged(random.Random(seed))))
        try:
            report = Report(read_runs([file]))
        except InputError:
            continue
        skipped += bool(report.runs.skipped)
        assert len(report.runs.records) + len(report.runs.skipped) == len(RECORDS), seed
        markdown(report.tables, report.introduction)
        comma_separated(report.result_tables)
        for table in report.tables:
            print_table(table, Console(file=io.StringIO(), width=80))
        if seed % 10 == 0:
            render_page(report)
    assert TIMES / 3 < skipped < TIMES
