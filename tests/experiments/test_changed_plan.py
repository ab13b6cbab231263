"""A report shows the records of a plan as it is now, whatever it was in between."""

import json
import shutil
from pathlib import Path

import pytest
from experiments.plans import quick, records
from tiny import save_tiny

from q2n.cli.main import main
from q2n.experiments.run import Request, run_sweep
from q2n.report.sweeps.report import Report
from q2n.report.sweeps.runs import read_runs


@pytest.fixture
def sweep(tmp_path):
    """Sweeps the plan with a group size into a folder."""

    def do(group_size: int, **how):
        plan = quick(tmp_path, settings={"group_size": group_size})
        return run_sweep(Request(plan=plan), tmp_path / "runs", **how)

    return do


def shown(runs: Path) -> set[int]:
    """Group sizes of the quantized cells in a report."""
    rows = Report(read_runs([runs])).plans["quick"]
    return {x.settings["group_size"] for row in rows for x in row.cells.values() if x.settings}


def test_of_a_plan_that_was_changed_back_the_first_records_count(sweep, tmp_path, capsys):
    assert sweep(16).done == 3 and shown(tmp_path / "runs") == {16}
    assert sweep(32).done == 2 and shown(tmp_path / "runs") == {32}
    assert sweep(16).found == 3 and shown(tmp_path / "runs") == {16}
    before = [x.to_json() for x in records(tmp_path / "runs")]
    sweep(16)
    assert [x.to_json() for x in records(tmp_path / "runs")] == before, "taken once is enough"
    assert main(["report", str(tmp_path / "runs")]) == 0
    assert "left out: 2 records" in capsys.readouterr().err


def test_what_is_copied_counts_before_what_the_place_had(sweep, tmp_path):
    sweep(16)
    sweep(32)
    (tmp_path / "known").mkdir()
    for file in (tmp_path / "runs" / "cells").iterdir():
        if '"group_size": 16' in file.read_text():
            file.rename(tmp_path / "known" / file.name)
    assert sweep(16, known=[tmp_path / "known"]).copied == 2
    assert shown(tmp_path / "runs") == {16}


def test_cells_of_a_folder_that_holds_another_model_are_done_again(sweep, tmp_path):
    assert sweep(16).done == 3
    before = {x.original_sha256 for x in records(tmp_path / "runs")}
    shutil.rmtree(tmp_path / "model")
    save_tiny(tmp_path / "model", layers=1, seed=5)
    assert sweep(16).done == 3
    after = {x.original_sha256 for x in records(tmp_path / "runs")}
    assert len(before) == len(after) == 1 and before != after and None not in after
    assert sweep(16).found == 3


def test_records_from_before_hashes_were_kept_are_found(sweep, tmp_path):
    sweep(16)
    for file in (tmp_path / "runs" / "cells").iterdir():
        values = json.loads(file.read_text())
        del values["original_sha256"], values["taken"]
        file.write_text(json.dumps(values))
    assert sweep(16).found == 3 and shown(tmp_path / "runs") == {16}
