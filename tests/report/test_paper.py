"""Figures of the papers beside the cells of recipes."""

import pytest
import yaml

from q2n.experiments.plan_file import read_plan
from q2n.report import paper
from q2n.report.paper import MEAN, paper_figures, paper_source

ENTRIES = [
    (plan, cell["labels"], cell["figures"])
    for plan, entry in paper._plans().items()
    for cell in entry["cells"]
]


def test_a_cell_has_the_figures_of_its_labels_whatever_its_seed():
    labels = {"model": "LLaMA3.1-8B", "step": "alone", "seed": 0}
    assert paper_figures("table4", labels) == {"C4": 26.79, MEAN: 47.47}
    assert paper_figures("table4", {**labels, "seed": 7}) == paper_figures("table4", labels)
    assert "2506.11044" in paper_source("table4")


@pytest.mark.parametrize(
    ("plan", "labels"),
    [
        ("table4", {"model": "smollm2-135m", "step": "alone", "seed": 0}),
        ("table4", {"model": "LLaMA3.1-8B"}),  # the original
        ("table1", {"model": "LLaMA3.1-8B", "step": "alone", "seed": 0}),
        ("mine", {"model": "LLaMA3.1-8B", "step": "alone"}),
    ],
)
def test_other_cells_have_none(plan, labels):
    assert paper_figures(plan, labels) is None


def test_a_plan_without_figures_has_no_source():
    assert paper_source("mine") is None


@pytest.mark.parametrize(("plan", "labels", "figures"), ENTRIES)
def test_each_entry_is_of_a_cell_of_its_recipe(plan, labels, figures):
    recipe = read_plan(plan)
    assert "model" in labels and any(labels.items() <= x.items() for x in recipe.places())
    assert figures.keys() <= {*recipe.texts, MEAN, "PPL"}
    assert all(type(value) is float and 0 < value < 1e6 for value in figures.values())
    assert MEAN not in figures or recipe.tasks is not None


def test_no_two_entries_are_of_one_cell():
    places = [yaml.dump([plan, labels]) for plan, labels, _ in ENTRIES]
    assert len(set(places)) == len(places)
