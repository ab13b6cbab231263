"""What a cell that is refused costs, and what it leaves."""

import json
import shutil
from pathlib import Path

import pytest
from experiments.plans import quick, records
from tiny import tiny_text

from q2n.cli.main import main
from q2n.errors import InputError, NumericalError
from q2n.experiments import measure
from q2n.experiments.run import Request, run_sweep
from q2n.experiments.texts import Original


def request_of(folder: Path, **changes) -> Request:
    """One quantized cell."""
    return Request(plan=quick(folder, axes={"seed": [0]}, **changes), part=(2, 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"ppl": "nowhere.txt"}, "InputError: text missing: "),
        ({"length": 300}, "text missing: length 300 is more than the 128 positions of the model"),
    ],
)
def test_a_text_that_cannot_be_measured_costs_no_quantization(tmp_path, monkeypatch, text, said):
    monkeypatch.setattr(measure, "quantize", lambda *args, **how: pytest.fail("quantized"))
    quick(tmp_path)
    on = {"ppl": str(tmp_path / "text.txt"), "length": 16, "windows": 1, **text}
    run_sweep(request_of(tmp_path, texts={"missing": on}), tmp_path / "runs")
    (record,) = records(tmp_path / "runs")
    assert said in record.refused


def test_a_quiet_sweep_says_how_many_cells_were_refused(tmp_path, capsys):
    quick(tmp_path)
    plan = quick(tmp_path, texts={"missing": {"ppl": "nowhere.txt"}})
    capsys.readouterr()
    assert main(["sweep", plan, "--output", str(tmp_path / "runs"), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("3 cells refused; q2n report")


def test_tasks_without_their_files_cost_no_cell(tmp_path):
    (tmp_path / "empty").mkdir()
    plan = quick(tmp_path, tasks={"names": ["piqa"], "shots": 2})
    request = Request(plan=plan, data_dir=str(tmp_path / "empty"))
    missing = r"piqa: piqa_valid.jsonl, piqa_train.jsonl"
    with pytest.raises(InputError, match=missing):
        run_sweep(request, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("keep", [False, True])
def test_a_refused_cell_leaves_its_checkpoint_only_if_it_is_to_be_kept(tmp_path, monkeypatch, keep):
    def broken(self, folder):
        raise NumericalError("its logits are not finite")

    monkeypatch.setattr(Original, "compared", broken)
    outcome = run_sweep(request_of(tmp_path), tmp_path / "runs", keep=keep)
    assert outcome.refused == 1
    assert len(list((tmp_path / "runs" / "work").iterdir())) == keep


@pytest.fixture
def refused(tmp_path):
    """A folder of a sweep whose only cell was refused, and the arguments of the sweep."""
    plan = quick(tmp_path, axes={}, settings={"revision": "v2"})  # which no folder has
    words = ["sweep", plan, "--output", str(tmp_path / "runs")]
    assert main(words) == 0 and all(x.refused for x in records(tmp_path / "runs"))
    return words


def test_refusals_from_elsewhere_are_not_copied(refused, tmp_path, capsys):
    capsys.readouterr()
    words = [*refused[:-1], str(tmp_path / "other"), "--known", refused[-1], "--json"]
    assert main([*words, "--dry-run"]) == 0
    assert len(json.loads(capsys.readouterr().out)["cells"]) == 2
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["copied"] == 0


def test_a_dry_run_counts_what_a_retry_does_and_makes_nothing(refused, tmp_path, capsys):
    for folder in ("locks", "work"):
        shutil.rmtree(tmp_path / "runs" / folder)
    for more, cells in (([], 0), (["--retry"], 2)):
        capsys.readouterr()
        assert main([*refused, "--json", "--dry-run", *more]) == 0
        assert len(json.loads(capsys.readouterr().out)["cells"]) == cells
    assert [x.name for x in (tmp_path / "runs").iterdir()] == ["cells"]


def test_a_dry_run_into_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["sweep", quick(tmp_path), "--output", str(tmp_path / "file"), "--dry-run"]
    assert main(words) == 2 and "is no folder" in capsys.readouterr().err


def test_a_kept_checkpoint_goes_only_for_one_of_other_settings(tmp_path):
    def checkpoint(corpus: Path, **how) -> tuple[int, bool]:
        """The time of the kept checkpoint, and whether the cell was refused."""
        settings = {"method": "gptq", "corpus": str(corpus), "length": 16, "windows": 2}
        request = request_of(tmp_path, settings=settings)
        outcome = run_sweep(request, tmp_path / "runs", keep=True, **how)
        (file,) = (tmp_path / "runs" / "work").glob("*/q2n.json")
        return file.stat().st_mtime_ns, outcome.refused == 1

    def forget():
        shutil.rmtree(tmp_path / "runs" / "cells")

    text = tmp_path / "corpus.txt"
    text.write_text(tiny_text(40))
    made, _ = checkpoint(text)
    forget()
    text.rename(tmp_path / "away.txt")
    assert checkpoint(text) == (made, True), "nothing is there to make another one from"
    (tmp_path / "away.txt").rename(text)
    assert checkpoint(text, retry=True) == (made, False)
    forget()
    text.write_text(text.read_text()[::-1])
    again, was_refused = checkpoint(text)
    assert again != made and not was_refused
