"""Every cell of every recipe, at every scale, is one that q2n takes: known without a model."""

import json
import re
from pathlib import Path

import pytest
import yaml

from q2n.config.owners import build_plan
from q2n.config.reading import read_settings
from q2n.evaluation.evaluate import Conditions
from q2n.experiments.cells import cells_of
from q2n.experiments.plan_file import read_plan, recipes
from q2n.models.packaged import PACKAGED

WIDTHS = {"smollm2-135m": (576, 1536), "gemma3-270m": (640, 1024, 2048)}
ASKED_FOR = {"search", *(f"table{number}" for number in range(1, 7)), "figure1", "figure3"}
PLANS = [(name, scale) for name in recipes() for scale in (None, *read_plan(name).scales)]
BENCHMARKS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.yaml"))
SMALL = [name for name, scale in PLANS if scale == "small"]


def settings_of(plan):
    """The different ones of its cells."""
    cells = [cell for cell in cells_of(plan) if cell.settings is not None]
    assert cells and len({cell.id for cell in cells}) == len(cells)
    return {json.dumps(cell.settings, sort_keys=True): cell for cell in cells}.values()


def test_there_is_one_for_each_table_and_figure_and_for_the_benchmark():
    assert ASKED_FOR | {"ptqbench"} <= set(recipes())
    titles = " ".join(read_plan(name).title for name in recipes())
    assert "Tables 2 and 7" in titles and "Figure 2" in titles and "Figures 1 and 4" in titles
    assert set(SMALL) == set(recipes())


@pytest.mark.parametrize(("name", "scale"), PLANS)
def test_q2n_takes_every_cell(name, scale):
    plan = read_plan(name, scale)
    assert plan.name == name and plan.title
    for cell in settings_of(plan):
        build_plan(read_settings(cell.settings))


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_q2n_takes_every_cell_of_the_plans_beside_the_benchmarks(file):
    plan = read_plan(str(file))
    for cell in settings_of(plan):
        build_plan(read_settings(cell.settings))


def test_widths_by_layer_are_compared_at_the_bits_that_one_width_stores():
    plan = read_plan(str(next(file for file in BENCHMARKS if file.stem == "allocation")))
    group, labels = plan.settings["group_size"], plan.labels("bits").values()
    alike = [x["bits"] + (16 + x["bits"]) / group for x in labels if "bits" in x]
    assert [x["allocate"] for x in labels if "allocate" in x] == alike


def test_table1_has_the_eight_models_of_the_paper_each_at_one_width():
    cells = cells_of(read_plan("table1"))
    widths = {(x.model, x.settings["bits"]) for x in cells if x.settings is not None}
    assert len(widths) == len({model for model, _ in widths}) == 8
    assert ("deepseek-ai/deepseek-moe-16b-base", 2) in widths


@pytest.mark.parametrize(("name", "scale"), PLANS)
def test_texts_can_be_measured_and_none_is_the_held_out_one(name, scale):
    plan = read_plan(name, scale)
    texts = [Conditions.of(**text) for text in plan.texts.values()]
    if plan.search is not None:
        held_out = Conditions.of(**plan.search.text)
        assert held_out.split == "validation"
        assert all(text.split is None and text.protocol == "q2n" for text in texts)


@pytest.mark.parametrize("name", SMALL)
def test_small_cells_are_of_packaged_models_and_groups_divide_their_columns(name):
    plan = read_plan(name, "small")
    for cell in cells_of(plan):
        assert cell.model in PACKAGED
        group = (cell.settings or {}).get("group_size", 1)
        assert all(width % group == 0 for width in WIDTHS[cell.model])
        if cell.settings is not None:
            assert cell.settings["windows"] == 16 and cell.settings["length"] <= 1024


@pytest.mark.parametrize("name", [name for name in SMALL if name.startswith(("table", "figure3"))])
def test_small_tables_have_three_seeds_of_what_is_compared(name):
    plan = read_plan(name, "small")
    assert plan.compare and list(plan.labels("seed")) == [0, 1, 2]


def test_small_tables_share_their_cells():
    """Without Q2N, and with its defaults, 3 bits and C4 stand in several tables."""
    keys = {
        name: {cell.key for cell in cells_of(read_plan(name, "small"))}
        for name in ("table1", "table3", "table4", "figure3")
    }
    for name in ("table3", "table4", "figure3"):
        assert len(keys["table1"] & keys[name]) >= 7  # an original, both at 3 seeds


DOCUMENT = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8")


def test_the_document_counts_the_cells_of_every_recipe():
    rows = re.findall(r"^\| (`.*`) \|.*\| ([\d, ]+) \|$", DOCUMENT, re.MULTILINE)
    counted = {
        name: int(count)
        for names, counts in rows
        for name, count in zip(re.findall("`(.*?)`", names), counts.split(", "), strict=True)
    }
    assert counted == {name: len(cells_of(read_plan(name, "small"))) for name in recipes()}


def test_the_documents_plan_is_one(tmp_path):
    (tmp_path / "mine.yaml").write_text(re.search("```yaml\n(.*?)```", DOCUMENT, re.DOTALL)[1])
    plan = read_plan(str(tmp_path / "mine.yaml"))
    assert len(cells_of(plan)) == 2 + 3 * 2 * 3
    assert len(cells_of(read_plan(str(tmp_path / "mine.yaml"), "quick"))) == 2 + 3 * 2
    keys = re.search(r"`(search: .*?\})`", DOCUMENT, re.DOTALL)[1]
    assert yaml.safe_load(keys)["search"].keys() == {"over", "how", "text"}
