import json
from dataclasses import replace

import pytest
from sweep_records import layers, record, spectrum, sweep, write_cells

from q2n.errors import InputError
from q2n.report.sweeps.runs import read_runs

A = record({"model": "m", "step": "alone", "seed": 0})
B = record({"model": "m", "step": "Q2N", "seed": 0}, started="2026-11-26T15:00:00+00:00")

LAYER = layers(0.7, stepped=True)["q_proj"]


def line(record) -> str:
    return json.dumps(record.to_json())


def test_a_sweep_a_folder_and_a_file_hold_the_same(tmp_path) -> None:
    write_cells([A, B], tmp_path / "sweep")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.json").write_text(line(A))
    (tmp_path / "folder" / "b.jsonl").write_text(f"{line(B)}\n\n")
    (tmp_path / "all.jsonl").write_text(f"{line(B)}\n{line(A)}\n")
    for places in (["sweep"], ["folder"], ["all.jsonl"], ["sweep", "folder", "all.jsonl"]):
        runs = read_runs(tmp_path / place for place in places)
        assert [x.to_json() for x in runs.records] == [json.loads(line(x)) for x in (A, B)]
        assert runs.skipped == []


def test_what_is_no_record_is_named_with_its_reason(tmp_path) -> None:
    cells = write_cells([A], tmp_path) / "cells"
    whole = A.to_json()
    texts = {
        "truncated": line(A)[:100],
        "empty": "",
        "list": "[]",
        "layout": json.dumps({**whole, "layout": 99}),
        "other": json.dumps({"model_type": "llama"}),
        "field": json.dumps({**whole, "speed": 1}),
        "value": json.dumps({**whole, "texts": [{**whole["texts"][0], "perplexity": "high"}]}),
        "infinite": line(A)
        .replace("36.6", "NaN")
        .replace('"bits_per_weight": 3.03', '"bits_per_weight": Infinity'),
        "deep": "[" * 100_000,
        "lengths": line(replace(A, layers={"q_proj": replace(LAYER, alpha=[1.0])})),
        "spectrum": line(replace(A, spectra=[replace(spectrum(0, "q_proj"), places=[0])])),
        "huge": line(replace(A, bits_per_weight=1e200)),
        "negative": line(replace(A, texts=[replace(A.texts[0], divergence_error=-0.1)])),
    }
    for name, text in texts.items():
        (cells / f"{name}.json").write_text(text)
    (cells / "bytes.json").write_bytes(b"\xff\xfe{}")
    runs = read_runs([tmp_path])
    assert len(runs.records) == 1
    why = {x.place.rsplit("/", 1)[-1].removesuffix(".json"): x.why for x in runs.skipped}
    assert set(why) == {*texts, "bytes"}
    assert "truncated" in why["truncated"] and "truncated" in why["empty"]
    assert why["other"] == "it is no record of a sweep: it names no layout"
    assert "layout 99" in why["layout"] and "speed" in why["field"]
    assert "texts.0.perplexity" in why["value"] and "bits_per_weight" in why["infinite"]
    assert why["lengths"] == "layers.q_proj: alpha has 1 values for 30 blocks"
    assert "spectra.0" in why["spectrum"] and "bits_per_weight" in why["huge"]
    assert "divergence_error: -0.1" in why["negative"]
    assert all("\n" not in reason for reason in why.values())


def test_lines_of_other_programs_are_said_once_a_file(tmp_path) -> None:
    file = tmp_path / "old.jsonl"
    file.write_text(f'{{"setting": 1}}\n{line(A)}\n{{"setting": 2}}\n{line(B)[:50]}\n')
    runs = read_runs([file])
    assert [x.cell for x in runs.records] == [A.cell]
    assert {x.place for x in runs.skipped} == {str(file), f"{file}:4"}
    assert any(x.why.startswith("2 lines") for x in runs.skipped)


def test_of_a_cell_that_was_done_twice_the_later_counts(tmp_path) -> None:
    later = replace(A, started="2026-11-27T00:00:00+00:00", bits_per_weight=2.0)
    file = tmp_path / "all.jsonl"
    for order in ((A, later), (later, A)):
        file.write_text("".join(f"{line(x)}\n" for x in order))
        assert [x.bits_per_weight for x in read_runs([file]).records] == [2.0]


def test_a_record_that_was_taken_again_counts_before_what_was_done_since(tmp_path) -> None:
    since = replace(A, cell="other", started="2026-11-27T00:00:00+00:00")
    taken = replace(A, taken="2026-11-27T00:00:00.500000+00:00")
    for records, cells in (([A, since], [A.cell, "other"]), ([since, taken], ["other", A.cell])):
        (tmp_path / "all.jsonl").write_text("".join(f"{line(x)}\n" for x in records))
        assert [x.cell for x in read_runs([tmp_path / "all.jsonl"]).records] == cells


@pytest.mark.parametrize("name", ["nowhere", "empty", "old.jsonl"])
def test_without_any_record_there_is_no_report(tmp_path, name) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "old.jsonl").write_text('{"setting": 1}\n')
    with pytest.raises(InputError, match=name):
        read_runs([tmp_path / name])


def test_a_whole_sweep_comes_back(tmp_path) -> None:
    records = sweep(seeds=(0,))
    runs = read_runs([write_cells(records, tmp_path)])
    assert [x.cell for x in runs.records] == [x.cell for x in records]
