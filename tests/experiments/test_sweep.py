"""Sweeps over a tiny model: every cell once, whatever happens."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from experiments.plans import place, plan, records, written

from q2n import evaluate
from q2n.api import compare, quantize
from q2n.errors import InputError
from q2n.experiments.run import Request, estimated, run_sweep
from q2n.experiments.sweep import Runs
from q2n.pipeline.store import RunStore


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    return place(tmp_path_factory.mktemp("place"))


def request_of(there, folder, **changes) -> Request:
    return Request(plan=written(plan(there, **changes), folder))


def test_a_record_says_what_quantize_and_compare_say(there, tmp_path):
    outcome = run_sweep(request_of(there, tmp_path), tmp_path / "runs")
    assert (outcome.done, outcome.found, outcome.refused) == (5, 0, 0)
    by_labels = {tuple(x.labels.values())[1:]: x for x in records(tmp_path / "runs")}
    on = {"ppl": str(there / "text.txt"), "length": 16, "windows": 4}
    original = by_labels[()]
    assert original.is_original
    assert original.texts[0].perplexity == evaluate(there / "model", **on).perplexity
    cell = by_labels["Q2N", 1]
    settings = {**plan(there)["settings"], "nullspace": "paper", "seed": 1}
    done = quantize(there / "model", tmp_path / "out", **settings)
    expected = compare(tmp_path / "out", there / "model", **on)
    text = cell.texts[0]
    assert text.perplexity == expected.model.perplexity
    assert text.divergence == expected.fidelity.divergence
    assert tuple(text.by_window) == expected.fidelity.by_window
    assert cell.bits_per_weight == done.record["bits_per_weight"] and cell.bytes == done.bytes_after
    assert cell.model_sha256 == done.record["settings"]["model_sha256"]
    assert len(cell.layers["q_proj"].alpha) == len(cell.layers["q_proj"].blocks) == 3
    assert os.listdir(tmp_path / "runs" / "work") == []


def test_a_second_sweep_does_nothing(there, tmp_path):
    request = request_of(there, tmp_path)
    run_sweep(request, tmp_path / "runs")
    before = {x: x.stat().st_mtime_ns for x in (tmp_path / "runs/cells").iterdir()}
    outcome = run_sweep(request, tmp_path / "runs")
    assert (outcome.done, outcome.found) == (0, 5)
    assert before == {x: x.stat().st_mtime_ns for x in (tmp_path / "runs/cells").iterdir()}


def test_what_another_plan_has_done_is_copied_under_new_labels(there, tmp_path):
    run_sweep(request_of(there, tmp_path), tmp_path / "runs")
    axes = {**plan(there)["axes"], "step": {"none": {}, "paper": {"nullspace": "paper"}}}
    outcome = run_sweep(request_of(there, tmp_path, name="two", axes=axes), tmp_path / "runs")
    assert (outcome.done, outcome.copied) == (0, 5)
    own = {
        x.plan: x for x in records(tmp_path / "runs") if x.labels.get("step") in ("Q2N", "paper")
    }
    assert own["two"].texts == own["small"].texts and own["two"].compare == {"step": "none"}


def test_a_record_that_was_cut_short_is_done_again(there, tmp_path):
    request = request_of(there, tmp_path)
    run_sweep(request, tmp_path / "runs")
    file = Runs(tmp_path / "runs").cells / request.cells()[2].file
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert run_sweep(request, tmp_path / "runs").done == 1
    assert json.loads(file.read_bytes())["texts"] == json.loads(whole)["texts"]


def test_what_q2n_refuses_is_a_record_and_is_done_again_on_request(there, tmp_path):
    changes = {"settings": {**plan(there)["settings"], "length": 100000}}
    outcome = run_sweep(request_of(there, tmp_path, **changes), tmp_path / "runs")
    assert (outcome.done, outcome.refused) == (5, 4)
    refused = [x for x in records(tmp_path / "runs") if x.refused is not None]
    assert "positions of the model" in refused[0].refused and not refused[0].texts
    request = request_of(there, tmp_path, **changes)
    assert run_sweep(request, tmp_path / "runs").done == 0
    assert run_sweep(request, tmp_path / "runs", retry=True).done == 4


def test_a_cell_in_another_process_is_left_to_it(there, tmp_path):
    request, runs = request_of(there, tmp_path), Runs(tmp_path / "runs")
    with runs.lock(request.cells()[1]):
        outcome = run_sweep(request, runs.folder)
    assert (outcome.done, outcome.elsewhere) == (4, 1)
    assert run_sweep(request, runs.folder).done == 1


def test_parts_are_apart_and_together_all(there, tmp_path):
    plan_file = written(plan(there), tmp_path)
    parts = [Request(plan=plan_file, part=(k, 3)).cells() for k in (1, 2, 3)]
    ids = [cell.id for part in parts for cell in part]
    assert sorted(ids) == sorted(cell.id for cell in Request(plan=plan_file).cells())
    with pytest.raises(InputError, match="K/N"):
        Request(plan=plan_file, part=(4, 3))


def test_a_label_is_known_by_its_text_on_its_own_axis(there, tmp_path):
    axes = {"model": [str(there / "model")], "bits": {"2": {"bits": 2}}, "seed": [1, 2]}
    plan_file = written(plan(there, axes=axes, compare=None), tmp_path)
    cells = Request(plan=plan_file, only={"bits": ["2"], "seed": ["2"]}).cells()
    assert [cell.labels.get("bits") for cell in cells] == [None, "2"]
    assert cells[1].settings["seed"] == 2
    with pytest.raises(InputError, match="axis seed has no '3'; it has 1, 2"):
        Request(plan=plan_file, only={"seed": ["1", "3"]}).cells()


def test_a_search_takes_what_does_best_on_held_out_text(there, tmp_path):
    search = {
        "over": {"damping": [10.0, 0.01, 100.0]},
        "text": {"ppl": str(there / "other.txt"), "length": 16, "windows": 2},
    }
    axes = {"model": [str(there / "model")]}
    request = request_of(there, tmp_path, axes=axes, compare=None, search=search)
    run_sweep(request, tmp_path / "runs")
    (record,) = [x for x in records(tmp_path / "runs") if not x.is_original]
    assert [x["damping"] for x in record.tried] == [10.0, 0.01, 100.0]
    best = min(record.tried, key=lambda trial: trial["divergence"])
    assert record.chosen == {"damping": best["damping"]}
    settings = {**plan(there)["settings"], **record.chosen}
    quantize(there / "model", tmp_path / "out", **settings)
    on = {"ppl": str(there / "text.txt"), "length": 16, "windows": 4}
    assert record.texts[0].perplexity == evaluate(tmp_path / "out", **on).perplexity


def test_a_search_on_the_test_text_is_refused(there, tmp_path):
    on = {"ppl": str(there / "text.txt"), "length": 20, "windows": 2}
    search = {"over": {"damping": [0.01, 0.1]}, "text": on}
    run_sweep(request_of(there, tmp_path, search=search), tmp_path / "runs")
    refused = [x.refused for x in records(tmp_path / "runs") if not x.is_original]
    assert len(refused) == 4 and all("on which the result is measured" in x for x in refused)


def test_a_dry_run_knows_what_is_left_and_takes_its_time_from_what_is_there(there, tmp_path):
    request = request_of(there, tmp_path)
    left, time_ = estimated(request.cells(), tmp_path / "runs")
    assert len(left) == 5 and time_["unknown"] == 0 and time_["seconds"] > 0
    run_sweep(Request(plan=request.plan, part=(1, 2)), tmp_path / "runs")
    left, time_ = estimated(request.cells(), tmp_path / "runs")
    taken = [sum(x.seconds.values()) for x in records(tmp_path / "runs") if not x.is_original]
    assert len(left) == 2
    assert time_["seconds"] == pytest.approx(sum(taken) / len(taken) * 2, rel=0.8)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_do_every_cell_once(there, tmp_path, killed):
    request = request_of(there, tmp_path)
    command = [sys.executable, "-m", "q2n.cli.main", "sweep", request.plan, "--json"]
    command += ["--output", str(tmp_path / "runs")]

    def start():
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first = start()
    if killed:
        until = time.monotonic() + 60
        while not list((tmp_path / "runs/work").glob("*")) and time.monotonic() < until:
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
    second = start()
    said = [process.communicate()[0] for process in (first, second)]
    done = [json.loads(text.splitlines()[-1])["done"] for text in said if '"done"' in text]
    begun = sum(text.count('"text": "') for text in said)
    assert len(records(tmp_path / "runs")) == 5 and os.listdir(tmp_path / "runs/work") == []
    if killed:
        assert len(done) == 1 and begun <= 6
    else:
        assert sum(done) == 5


def test_spectra_say_what_they_were_taken_of(there, tmp_path):
    changes = {"spectra": {"layers": ["*.0.*"]}, "texts": {}, "compare": None}
    axes = {"model": [str(there / "model")]}
    assert run_sweep(request_of(there, tmp_path, axes=axes, **changes), tmp_path / "runs").done == 1
    (record,) = records(tmp_path / "runs")
    assert record.spectra and record.model_sha256 and record.calibration_sha256
    assert record.seconds["spectra"] > 0


def test_what_another_plan_has_is_not_done_again_by_retry(there, tmp_path):
    run_sweep(request_of(there, tmp_path), tmp_path / "runs")
    outcome = run_sweep(request_of(there, tmp_path, name="two"), tmp_path / "runs", retry=True)
    assert (outcome.done, outcome.copied) == (0, 5)


def test_what_records_from_elsewhere_have_is_copied(there, tmp_path):
    request = request_of(there, tmp_path)
    run_sweep(replace(request, part=(1, 3)), tmp_path / "before")
    lines = [json.dumps(x.to_json()) for x in records(tmp_path / "before")]
    (tmp_path / "known.jsonl").write_text("\n".join(lines))
    known = [tmp_path / "known.jsonl"]
    left, _ = estimated(request.cells(), tmp_path / "runs", known)
    assert len(left) == 3
    outcome = run_sweep(request, tmp_path / "runs", known=known)
    assert (outcome.done, outcome.copied) == (3, 2)
    with pytest.raises(InputError, match="is not there"):
        run_sweep(request, tmp_path / "other", known=[tmp_path / "nowhere"])
    assert not (tmp_path / "other").exists()


def test_results_are_copied_rather_than_refusals(there, tmp_path):
    request, runs = request_of(there, tmp_path), Runs(tmp_path / "runs")
    run_sweep(request, runs.folder)
    cell = request.cells()[1]
    whole = json.loads((runs.cells / cell.file).read_text())
    for name, refused in (("0", "no"), ("z", None)):
        other = {**whole, "texts": [], "refused": refused} if refused else whole
        (runs.cells / f"{cell.key}-{name}.json").write_text(json.dumps(other))
    (runs.cells / cell.file).unlink()
    assert run_sweep(request, runs.folder).copied == 1
    assert runs.record(cell).refused is None


def test_a_record_of_a_newer_version_is_not_written_over(there, tmp_path):
    request, runs = request_of(there, tmp_path), Runs(tmp_path / "runs")
    file = runs.cells / request.cells()[0].file
    file.write_text(json.dumps({"layout": 99}))
    with pytest.raises(InputError, match="newer q2n"):
        run_sweep(request, runs.folder)
    assert json.loads(file.read_text()) == {"layout": 99}


@pytest.fixture
def begun(there, tmp_path, monkeypatch):
    """A sweep whose second cell was interrupted after a block; the folder of its blocks."""
    request = Request(plan=written(plan(there), tmp_path), part=(2, 5))
    (cell,) = request.cells()
    write, blocks = RunStore.write_block, []

    def once(*args, **kwargs):
        if blocks:
            raise KeyboardInterrupt
        blocks.append(write(*args, **kwargs))
        return blocks[0]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunStore, "write_block", once)
        run_sweep(request, tmp_path / "runs")
    folder = tmp_path / "runs" / "work" / f"{cell.key}.partial"
    assert list(folder.glob("block*"))
    return request, folder


def test_a_full_disk_ends_a_sweep_and_is_no_result(begun, tmp_path, monkeypatch):
    request, folder = begun

    def full(*args, **kwargs):
        raise InputError("cannot be written") from OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(RunStore, "write_block", full)
    with pytest.raises(InputError, match="cannot be written"):
        run_sweep(request, tmp_path / "runs")
    assert not records(tmp_path / "runs") and list(folder.glob("block*"))


def test_what_is_refused_for_now_keeps_its_finished_blocks(begun, there, tmp_path):
    request, folder = begun
    (there / "text.txt").rename(there / "away.txt")
    try:
        assert run_sweep(request, tmp_path / "runs").refused == 1
    finally:
        (there / "away.txt").rename(there / "text.txt")
    assert list(folder.glob("block*"))
    assert run_sweep(request, tmp_path / "runs", retry=True).refused == 0


def test_a_long_window_that_holds_the_test_text_is_refused(there, tmp_path):
    on = {"ppl": str(there / "text.txt"), "length": 60, "windows": 1}
    search = {"over": {"damping": [0.01, 0.1]}, "text": on}
    test = {"text": {"ppl": str(there / "text.txt"), "length": 16, "windows": 1}}
    request = request_of(there, tmp_path, search=search, texts=test)
    run_sweep(replace(request, part=(2, 5)), tmp_path / "runs")
    (record,) = records(tmp_path / "runs")
    assert "on which the result is measured" in record.refused


def test_a_dry_run_makes_no_folder(there, tmp_path):
    estimated(request_of(there, tmp_path).cells(), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_text_of_all_its_windows_has_an_estimate(there, tmp_path):
    texts = {"text": {"ppl": str(there / "text.txt"), "windows": None}}
    _, time_ = estimated(request_of(there, tmp_path, texts=texts).cells(), tmp_path / "runs")
    assert time_["seconds"] > 0


def test_what_cannot_be_is_refused_before_anything_runs(there, tmp_path):
    plan_file = written(plan(there, skip=[{"step": "Q2N"}]), tmp_path)
    with pytest.raises(InputError, match="has no cell with step=Q2N"):
        Request(plan=plan_file, only={"step": ["Q2N"]}).cells()
    empty = plan(there, axes={"model": ["x"], "seed": []}, compare=None)
    with pytest.raises(InputError, match="has no cell: its axis seed has no value"):
        Request(plan=written(empty, tmp_path)).cells()
    with pytest.raises(InputError, match="part is 0/3; it takes K/N"):
        Request(plan=plan_file, part=(0, 3))
    with pytest.raises(InputError, match="data_dir .*nowhere is no folder"):
        Request(plan=plan_file, data_dir=str(tmp_path / "nowhere"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, how: False)
    with pytest.raises(InputError, match="runs cannot be written to"):
        Runs(tmp_path / "runs")
