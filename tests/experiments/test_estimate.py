"""Forecasts of cells: by what is to be done in them, at the pace of what was done."""

import pytest
from experiments.plans import quick
from sweep_records import record, text_result

from q2n.experiments.cells import Cell
from q2n.experiments.estimate import Forecast
from q2n.experiments.run import Request


@pytest.fixture
def cells(tmp_path):
    """A cell for each number of windows and quality, after the original."""
    axes = {"windows": [4, 512], "quality": {"plain": {}, "best": {"quality": "best"}}}
    settings = {"method": "gptq", "corpus": str(tmp_path / "text.txt"), "length": 64}
    return Request(plan=quick(tmp_path, settings=settings, axes=axes)).cells()


def done(cell: Cell, quantization: float, **others: float):
    on = [text_result("text", 0.1, windows=2, length=16)]
    settings = {"model": cell.model, **cell.settings}
    seconds = {"quantization": quantization, **others}
    return record(cell.labels, settings=settings, seconds=seconds, texts=on)


def test_what_a_cell_took_is_scaled_to_what_is_to_do_in_another(cells):
    before = [Forecast([]).seconds(cell) for cell in cells[1:]]
    after = [Forecast([done(cells[1], 12.0)]).seconds(cell) for cell in cells[1:]]
    assert after[0] == pytest.approx(12.0)
    assert [x / after[0] for x in after] == pytest.approx([x / before[0] for x in before])


def test_the_nearest_record_counts(cells):
    forecast = Forecast([done(cells[1], 12.0), done(cells[4], 900.0)])
    assert forecast.seconds(cells[4]) == pytest.approx(900.0)


def test_other_names_of_settings_are_read(tmp_path):
    both = []
    for settings in ({"nsamples": 2, "seqlen": 32}, {"windows": 2, "length": 32}):
        settings |= {"method": "gptq", "corpus": "sotu"}
        cells = Request(plan=quick(tmp_path, settings=settings)).cells()
        both.append(Forecast([]).seconds(cells[1]))
    assert both[0] == both[1]


def test_tasks_take_what_they_took(cells):
    known = done(cells[1], 1.0, tasks=100.0)
    scaled = Forecast([done(cells[1], 1.0)]).seconds(cells[3])
    assert Forecast([known]).seconds(cells[3]) == pytest.approx(scaled + 100.0)
