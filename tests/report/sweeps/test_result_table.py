"""Rows, columns and captions of a plan."""

from dataclasses import replace

import pytest
from sweep_records import record, refused, spectrum, sweep, task_scores, text_result

from q2n.report.sweeps.cut_table import cut_table
from q2n.report.sweeps.leads import lead_table, leads_of
from q2n.report.sweeps.result_table import result_table
from q2n.report.sweeps.rows import rows_of
from q2n.report.sweeps.search_table import search_table
from q2n.report.sweeps.time_table import time_table
from q2n.report.table_model import Quantity, Table

MODEL = {"model": "SmolLM2", "corpus": "c4"}


STEPS = ["alone", "Q2N"]


def cell(step: str, seed: int, divergence: float, **changes):
    found = {"compare": {"step": "alone"}} if step != "alone" else {}
    places = {"model": 0, "corpus": 0, "step": STEPS.index(step), "seed": seed}
    changes = {"places": places, **found, **changes}
    return record({**MODEL, "step": step, "seed": seed}, divergence, **changes)


def column(table: Table, name: str) -> list:
    place = [x.name for x in table.columns].index(name)
    return [row.cells[place] for row in table.rows]


TWO = [cell("alone", s, 0.70 + s / 100) for s in (0, 1)] + [
    cell("Q2N", s, 0.60 + s / 100) for s in (0, 1)
]


def test_cells_that_differ_in_the_seed_are_one_row() -> None:
    rows = rows_of(TWO)
    assert [row.labels["step"] for row in rows] == ["alone", "Q2N"]
    table = result_table("steps", rows)
    assert column(table, "step") == ["alone", "Q2N"] and column(table, "seeds")[0].value == 2
    values = [x.texts[0].divergence for x in TWO[:2]]
    assert column(table, "KL")[0].value == pytest.approx(sum(values) / 2)
    assert column(table, "KL")[0].spread == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_what_all_rows_share_stands_in_the_caption() -> None:
    table = result_table("steps", rows_of([record({"model": "SmolLM2"}, None), *TWO]))
    assert table.constants == {"model": "SmolLM2", "corpus": "c4", "text": "WikiText-2"}
    assert [x.title for x in table.columns if x.kind == "label"] == ["step"]
    assert column(table, "step") == ["original", "alone", "Q2N"]
    assert "model SmolLM2" in table.caption and "seed" not in table.constants


def test_a_row_is_compared_with_the_row_that_it_names() -> None:
    (alone, lead) = column(result_table("steps", rows_of(TWO)), "less alone")
    assert alone is None and lead.value == pytest.approx(-0.1, abs=0.01)
    assert lead.error is not None and str(lead).startswith("-0.1")


def test_other_windows_are_not_compared() -> None:
    others = [replace(x, texts=[replace(x.texts[0], sha256="other")]) for x in TWO[2:]]
    table = result_table("steps", rows_of([*TWO[:2], *others]))
    assert "less alone" not in [x.name for x in table.columns]


def test_cells_of_another_model_are_no_seeds_of_a_row() -> None:
    one, other = ([replace(x, original_sha256=y) for x in TWO] for y in ("one", "other"))
    (row, _) = rows_of([one[0], other[1], *one[2:]])
    assert list(row.cells) == [1] and row.cells[1].original_sha256 == "other"
    rotated = [replace(x, model_sha256=str(x.labels["seed"])) for x in one]
    assert len(rows_of(rotated)[0].cells) == 2
    before = [one[0], replace(other[1], original_sha256=None)]
    assert len(rows_of(before)[0].cells) == 2


def test_a_refused_cell_is_a_row_with_its_message() -> None:
    labels = {**MODEL, "step": "OWQ"}
    why = "InputError: no column fits"
    places = {"model": 0, "corpus": 0, "step": 2}
    cells = [refused({**labels, "seed": s}, why, places=places) for s in (0, 1)]
    table = result_table("steps", rows_of([*TWO, *cells]))
    assert [row.refused for row in table.rows] == ["", "", "InputError: no column fits"]
    assert column(table, "KL")[2] is None


def test_one_seed_refused_leaves_the_others() -> None:
    why = refused({**MODEL, "step": "Q2N", "seed": 2}, "NumericalError: NaN")
    row = rows_of([*TWO, why])[1]
    assert len(row.done) == 2 and row.refusals == ["NumericalError: NaN"]


def test_several_texts_are_groups_of_columns() -> None:
    texts = [text_result("A", 0.5), text_result("B", 0.7)]
    table = result_table("steps", rows_of([cell("alone", 0, 0.5, texts=texts), TWO[2]]))
    assert {"A KL", "B KL"} <= {x.name for x in table.columns} and "text" not in table.constants


def test_seeds_with_other_questions_of_a_task_are_not_averaged() -> None:
    few, many = task_scores(0.2), [replace(x, questions=999, limit=None) for x in task_scores(0.4)]
    rows = rows_of([cell("alone", 0, 0.5, tasks=few), cell("alone", 1, 0.5, tasks=many)])
    table = result_table("steps", rows)
    assert [x.value for x in column(table, "tasks % piqa acc")] == pytest.approx([48.0])
    assert [x.value for x in column(table, "seeds")] == [1]


def test_seeds_whose_tasks_came_in_another_order_count_in_the_mean() -> None:
    scores = {0: task_scores(0.2), 1: task_scores(0.4)[::-1]}
    rows = rows_of([cell("alone", seed, 0.5, tasks=x) for seed, x in scores.items()])
    (mean,) = column(result_table("steps", rows), "tasks % mean acc")
    assert mean.value == pytest.approx(36.0)


def test_tasks_and_their_mean_with_its_error() -> None:
    table = result_table(
        "steps", rows_of([cell("alone", s, 0.5, tasks=task_scores(0.4)) for s in (0, 1)])
    )
    names = [x.title for x in table.columns if x.group]
    assert "piqa acc" in names and "piqa acc_norm" not in names and "hellaswag acc_norm" in names
    (mean,) = column(table, "tasks % mean acc")
    assert mean.value == pytest.approx(46.0) and mean.error == pytest.approx(2 / 7**0.5)


def test_rows_follow_the_plan_not_the_order_of_files() -> None:
    records = sweep(seeds=(0,))
    rows = rows_of(sorted(records, key=lambda x: x.cell))
    assert [row.first.cell for row in rows[:13:12]] == [records[0].cell, records[12].cell]
    assert rows[0].is_original and len(rows) == 24
    methods = [row.labels["method"] for row in rows if row.labels.get("step") == "alone"][:6]
    assert methods == ["GPTQ", "GPTQ", "QuIP", "QuIP", "PB-LLM", "OWQ"]


def test_seconds_by_kind_of_layer() -> None:
    rows = rows_of(sweep(seeds=(0, 1)))
    table = time_table("table6", rows)
    assert table is not None and column(table, "q_proj")[0] == Quantity(1.5, decimals=2)
    assert set(column(table, "seconds of")) == {"all", "solver"}
    assert time_table("steps", rows_of(TWO)) is None


def test_the_best_row_of_each_model_width_and_text() -> None:
    rows = rows_of(sweep())
    found = {(x.model, x.width, x.text): x for x in leads_of("table6", rows)}
    assert len(found) == 8
    lead = found["SmolLM2-135M", "3", "WikiText-2"]
    assert (lead.best, lead.second) == ("QuIP, alone", "QuIP, Q2N")
    assert lead.ahead is not None and lead.ahead.value > 0
    table = lead_table(list(found.values()))
    assert len(table.rows) == 4, "the same two lead on both texts"
    assert column(table, "best")[0] == "QuIP, alone" and table.constants == {"plan": "table6"}
    assert column(table, "C4 lead")[0].value == found["SmolLM2-135M", "3", "C4"].ahead.value


def test_other_leaders_on_another_text_are_another_row() -> None:
    texts = [[text_result("A", 0.5), text_result("B", kl)] for kl in (0.5, 0.4)]
    rows = rows_of([cell(s, 0, 0.5, texts=x) for s, x in zip(("alone", "Q2N"), texts, strict=True)])
    table = lead_table(leads_of("steps", rows))
    assert column(table, "best") == ["alone", "Q2N"]
    assert column(table, "B KL")[0] is None and column(table, "A KL")[1] is None


def test_a_lead_within_its_error_is_said_to_be_so() -> None:
    even = [
        text_result("A", 0.5, by_window=[0.5 + (-1) ** w * s for w in range(8)]) for s in (0, 0.1)
    ]
    cells = [cell(step, 0, 0.5, texts=[x]) for step, x in zip(("alone", "Q2N"), even, strict=True)]
    assert leads_of("steps", rows_of(cells))[0].verdict == "within its error, one seed"
    assert leads_of("steps", rows_of(TWO))[0].verdict == "beyond its error"
    assert leads_of("steps", rows_of(TWO[:2]))[0].verdict == "no rival"


def test_a_leader_that_is_behind_on_common_seeds_does_not_lead() -> None:
    labels = {"model": "SmolLM2-135M", "bits": 3}
    found = [(0, 0.5), (1, 0.3), (2, 0.3)]
    cells = [record({**labels, "step": "A", "seed": seed}, value) for seed, value in found]
    cells.append(record({**labels, "step": "B", "seed": 0}, 0.4))
    (lead,) = leads_of("steps", rows_of(cells))[:1]
    assert (lead.best, lead.ahead.value < 0, lead.verdict) == ("A", True, "cannot be told")


def test_trials_of_a_search_and_what_it_chose() -> None:
    tried = [{"ridge": x, "divergence": kl} for x, kl in ((0.1, 0.52), (0.2, 0.5))]
    found = cell("Q2N", 0, 0.5, tried=tried, chosen={"ridge": 0.2})
    table = search_table("steps", rows_of([TWO[0], found]))
    assert table is not None and column(table, "chosen") == ["", "yes"]
    assert [x.value for x in column(table, "KL")] == [0.52, 0.5]
    assert search_table("steps", rows_of(TWO)) is None


def test_what_a_search_tried_stands_as_it_was_given() -> None:
    tried = [{"learning_rate": 1e-5, "group_size": 128, "divergence": 2.3e-5}]
    table = search_table("steps", rows_of([cell("Q2N", 0, 0.5, tried=tried)]))
    assert table is not None
    shown = {name: str(column(table, name)[0]) for name in ("learning_rate", "group_size", "KL")}
    assert shown == {"learning_rate": "1e-05", "group_size": "128", "KL": "0.000023"}


def test_the_figures_of_the_paper_stand_beside_ours() -> None:
    labels = {"model": "LLaMA3.1-8B", "decomposition": "eigh"}
    cells = [record({**labels, "decomposition": x}, plan="table3") for x in ("eigh", "SVD")]
    table = result_table("table3", rows_of(cells))
    assert [x.value for x in column(table, "paper mean of tasks")] == [50.57, 43.95]
    assert "Table 3" in table.caption
    small = [record({**x.labels, "model": "smollm2-135m"}, plan="table3") for x in cells]
    assert "paper" not in result_table("table3", rows_of(small)).caption.lower()


def test_without_a_divergence_the_least_perplexity_wins() -> None:
    cells = [
        cell(step, 0, 0.5, texts=[text_result("A", None, perplexity=p)])
        for step, p in (("alone", 50.0), ("Q2N", 40.0))
    ]
    table = lead_table(leads_of("steps", rows_of(cells)))
    assert column(table, "best") == ["Q2N"] and column(table, "the lead is") == ["cannot be told"]
    assert column(table, "A perplexity")[0].value == 40.0
    assert "A KL" not in [x.name for x in table.columns]


def test_a_plan_of_spectra_has_a_table_of_cuts_and_no_results() -> None:
    shown = {"m": [spectrum(block, "q_proj") for block in (0, 14)], "n": []}
    cells = [record({"model": m}, texts=(), bytes=None, spectra=x) for m, x in shown.items()]
    rows = rows_of(cells)
    table = cut_table("figure1", rows)
    assert table is not None and column(table, "input of")[1] == "model.layers.14.q_proj"
    assert [x.value for x in column(table, "ratio")] == [40, 82]
    assert result_table("figure1", rows) is None and cut_table("steps", rows_of(TWO)) is None


def test_an_original_with_the_labels_of_a_row_is_a_row_of_its_own() -> None:
    original = record({"model": "SmolLM2"}, None)
    cells = [record({"model": "SmolLM2", "seed": seed}, 0.7) for seed in (0, 1)]
    rows = rows_of([original, *cells])
    table = result_table("seeds", rows)
    assert sorted(column(table, "model")) == ["SmolLM2", "SmolLM2, original"]
    (row,) = [row for row in rows if not row.is_original]
    perplexities = [x.texts[0].perplexity for x in cells]
    assert row.on("WikiText-2").perplexity.value == pytest.approx(sum(perplexities) / 2)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3)])
def test_seeds_that_were_done_otherwise_than_the_last_are_in_no_mean(order) -> None:
    old = [cell("alone", seed, 0.9, settings={"bits": 3, "seed": seed}) for seed in (0, 1)]
    new = [cell("alone", seed, 0.5, settings={"bits": 2, "seed": seed}) for seed in (1, 2)]
    both = [*old, *new]
    (row,) = rows_of([both[place] for place in order])
    assert sorted(row.cells) == [1, 2]
    others = [text_result("WikiText-2", 0.9, seed=0)]
    old = [replace(cell("alone", 0, 0.9), texts=[replace(others[0], sha256="other")])]
    (row,) = rows_of([*old, cell("alone", 1, 0.5)])
    assert list(row.cells) == [1]
