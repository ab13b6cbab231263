"""The record in JSON and back, its totals, and what is shown of it."""

import json
from typing import Any

import pytest
from rich.console import Console

from q2n.errors import InputError
from q2n.report.block_record import BlockRecord, LayerRecord
from q2n.report.figures.checkpoint import plot_layers
from q2n.report.notes import notes_of
from q2n.report.record import RunRecord, timings
from q2n.report.tables import layer_table, settings_table

STEP = {"alpha_mean": 1.01, "alpha_min": 0.9, "alpha_max": 1.2, "output_error_before": 0.5}


def facts(index: int, **record: Any) -> dict[str, Any]:
    """What the store keeps of a block with two linears."""
    name = f"model.layers.{index}"
    shared = {"kind": "uniform", "metadata": {}}
    small = {"shape": [2, 8], "bits_per_weight": 3.5, "record": {"seconds": 1.0, **record}}
    large = {"shape": [4, 8], "bits_per_weight": 2.0, "record": {"solver_seconds": 0.5}}
    return {
        "block": name,
        "seconds": 2.0 + index,
        "never_called": [f"{name}.expert"] if index else [],
        "ignored": [],
        "layers": {f"{name}.q_proj": {**shared, **small}, f"{name}.up_proj": {**shared, **large}},
        "sha256": "not a matter of the record",
    }


def blocks(**record: Any) -> list[BlockRecord]:
    return [BlockRecord.from_facts(facts(index, **record)) for index in range(2)]


def record_of(**record: Any) -> RunRecord:
    return RunRecord.of({"bits": 3}, {"model": "tiny"}, blocks(**record), perplexity={})


def test_json_has_this_order_and_no_times() -> None:
    record = record_of(output_error=0.25, damping=0.01).to_json()
    assert list(record) == [
        "settings",
        "layers",
        "left_in_full_precision",
        "ignored",
        "notes",
        "bits_per_weight",
        "perplexity",
    ]
    assert record["settings"] == {"model": "tiny", "bits": 3}
    assert json.dumps(record["layers"]["model.layers.0.q_proj"]) == (
        '{"shape": [2, 8], "bits_per_weight": 3.5, "output_error": 0.25, "damping": 0.01}'
    )
    assert record["left_in_full_precision"] == ["model.layers.1.expert"]


def test_json_is_read_back_with_unknown_keys() -> None:
    record = {**record_of(found_by_a_new_method=[1, 2]).to_json(), "tasks": {"hellaswag": 0.3}}
    text = json.dumps(record)
    assert json.dumps(RunRecord.from_json(json.loads(text)).to_json()) == text


def test_the_mean_of_bits_counts_weights() -> None:
    assert record_of().bits_per_weight == (16 * 3.5 + 32 * 2.0) / 48
    assert RunRecord.of({}, {}, []).bits_per_weight == 0.0


def test_timings_hold_every_second() -> None:
    times = timings(blocks(output_error=0.25), {"rotation": 1.5, "gradients": 0.25})
    assert times["quantization_seconds"] == 6.75
    assert times["before"] == {"rotation": 1.5, "gradients": 0.25}
    assert times["blocks"] == {"model.layers.0": 2.0, "model.layers.1": 3.0}
    assert times["layers"]["model.layers.1.q_proj"] == {"seconds": 1.0}
    assert times["layers"]["model.layers.1.up_proj"] == {"solver_seconds": 0.5}


def shown(record: RunRecord) -> str:
    console = Console(width=200, record=True, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(settings_table(record.settings), layer_table(record))
    return captured.get()


def test_tables_show_the_step_where_there_is_one() -> None:
    without, with_step = shown(record_of(output_error=0.25)), shown(record_of(**STEP))
    assert "25.00" in without and "alpha" not in without
    assert "1.010" in with_step and "0.900" in with_step and "50.00" in with_step
    assert "model" in without and "tiny" in without


@pytest.mark.parametrize(
    ("names", "title", "first"),
    [
        (["model.layers.1.up"], "1 quantized linear of model.layers.1", "up "),
        (["h.1.up", "h.10.up", "h.11.up"], "3 quantized linears of h", "1.up "),
        (["a.up", "b.up"], "2 quantized linears", "a.up "),
    ],
)
def test_a_layer_has_its_name_whatever_stands_beside_it(names, title, first) -> None:
    layer = {"shape": [2, 8], "bits_per_weight": 3.5}
    record = RunRecord(
        settings={},
        layers={name: LayerRecord.from_json(layer) for name in names},
        left_in_full_precision=[],
        ignored=[],
    )
    text = shown(record)
    assert title in " ".join(text.split())
    assert any(line.strip().startswith(first) for line in text.splitlines())


def test_a_figure_needs_output_errors(tmp_path) -> None:
    with pytest.raises(InputError, match="nothing to plot"):
        plot_layers(record_of(), tmp_path / "errors.svg")
    plot_layers(record_of(output_error=0.25, **STEP), tmp_path / "errors.svg")
    assert (tmp_path / "errors.svg").read_text().startswith("<?xml")


def test_notes_are_those_of_the_run_and_then_of_its_blocks() -> None:
    of_run = "mtp.proj is copied unchanged"
    record = RunRecord.of({}, {}, blocks(), notes=[of_run])
    assert record.notes[0] == of_run
    assert record.notes[1:] == [
        "1 linears stay in full precision, for no calibration token reached them: "
        "model.layers.1.expert"
    ]
    assert RunRecord.from_json(json.loads(json.dumps(record.to_json()))).notes == record.notes


def test_fits_that_were_given_up_are_noted() -> None:
    losses = [{"fit_loss": [2.0, 1.0]}, {"fit_loss": [1.0, 1.5], "refit_loss": [1.0, 0.5]}]
    found = [BlockRecord.from_facts({**facts(i), **x}) for i, x in enumerate(losses)]
    assert notes_of(found)[1:] == [
        "Gradient steps on 1 blocks made their loss on the calibration text worse and were given "
        "up: model.layers.1"
    ]
    of_the_model = {**facts(0), "model_refit_loss": [0.1, 0.2]}
    assert notes_of([BlockRecord.from_facts(of_the_model)]) == [
        "Gradient steps on the whole model made its loss on the calibration text worse and were "
        "given up"
    ]


def test_columns_without_input_are_noted() -> None:
    found = blocks(dead_columns=3)
    assert notes_of(found)[1] == (
        "6 input columns in 2 layers got no input on the calibration text; "
        "their weights are rounded without feedback"
    )
    assert len(notes_of(blocks(dead_columns=0))) == 1
    idle = notes_of(blocks(dead_columns=8))
    assert len(idle) == 2
    assert idle[1] == (
        "2 linears got nothing but zeros as input on the calibration text, and are rounded without "
        "feedback or correction: model.layers.0.q_proj, model.layers.1.q_proj"
    )
