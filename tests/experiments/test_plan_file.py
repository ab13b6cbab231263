"""What a plan says, and how one that says it wrongly is refused."""

import pytest
from experiments.plans import plan, written

from q2n.errors import InputError
from q2n.experiments.cells import cells_of
from q2n.experiments.plan_file import read_plan, recipes


def refusal(values, tmp_path, **how) -> str:
    with pytest.raises(InputError) as caught:
        cells_of(read_plan(written(values, tmp_path), **how))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_combination_is_a_cell_after_the_originals(tmp_path):
    cells = cells_of(read_plan(written(plan(tmp_path), tmp_path)))
    model = str(tmp_path / "model")
    assert [dict(cell.labels) for cell in cells] == [
        {"model": model},
        *(
            {"model": model, "step": step, "seed": seed}
            for step in ("alone", "Q2N")
            for seed in (0, 1)
        ),
    ]
    assert [cell.settings is None for cell in cells] == [True, False, False, False, False]
    assert cells[4].places == {"model": 0, "step": 1, "seed": 1}
    assert cells[3].settings["nullspace"] == "paper" and cells[4].settings["seed"] == 1


def test_cells_are_compared_with_the_first_label(tmp_path):
    cells = cells_of(read_plan(written(plan(tmp_path), tmp_path)))
    assert [dict(cell.compare) for cell in cells] == [{}, {}, {}, {"step": "alone"}] + [
        {"step": "alone"}
    ]


def test_skipped_places_are_no_cells(tmp_path):
    skipping = plan(tmp_path, skip=[{"step": "Q2N", "seed": [1, 0]}])
    cells = cells_of(read_plan(written(skipping, tmp_path)))
    assert [cell.labels.get("step") for cell in cells] == [None, "alone", "alone"]


def test_only_some_labels(tmp_path):
    axes = {"model": [str(tmp_path / "model")], "seed": [0, 1, 2]}
    read = read_plan(written(plan(tmp_path, axes=axes, compare=None), tmp_path))
    for seeds in ([1], [0, 2]):
        cells = cells_of(read, only={"seed": seeds})
        assert [cell.labels.get("seed") for cell in cells] == [None, *seeds]


def test_a_scale_replaces_axes_and_settings_one_by_one_and_texts_as_a_whole(tmp_path):
    other = {"ppl": "c4"}
    scales = {"less": {"settings": {"bits": 2}, "axes": {"seed": [7]}, "texts": {"C4": other}}}
    read = read_plan(written(plan(tmp_path, scales=scales), tmp_path), "less")
    assert read.settings["bits"] == 2 and read.settings["windows"] == 4
    assert read.axes["seed"] == [7] and list(read.axes) == ["model", "step", "seed"]
    assert read.texts == {"C4": other}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axis": {}}, "unknown key axis. Did you mean 'axes'?"),
        ({"tasks": {"names": [], "limits": 3}}, "unknown key tasks.limits. Did you mean 'limit'?"),
        ({"compare": "stage"}, "compare is 'stage', which is none of its axes: model, step, seed"),
        ({"skip": [{"step": "Q3N"}]}, "axis step has no 'Q3N'; it has alone, Q2N"),
        ({"texts": {}}, "measures nothing: give texts, tasks or spectra"),
        ({"settings": {"bit": 3}}, "no option 'bit'. Did you mean 'bits'?"),
        ({"settings": {"bits": 7}}, "alone, seed 0: bits is 7"),
        ({"axes": {"model": ["x"], "grup": [1]}, "compare": None}, "no option 'grup'"),
        ({"axes": {"seed": [0]}, "compare": None}, "model is None; it takes the name of a model"),
        ({"texts": {"C4": {"ppl": "c4", "windws": 3}}}, "option windws. Did you mean 'windows'?"),
        ({"texts": {"C4": {"length": 3}}}, "text C4 does not say ppl"),
        ({"texts": {"C4": {"ppl": "c4", "length": "3"}}}, "text C4: length is '3'"),
        ({"tasks": {"names": ["piqua"]}}, "no task is called 'piqua'; did you mean piqa?"),
        ({"settings": {"output": "x"}}, "output is no setting of a plan"),
        ({"search": {"over": {"damping": []}, "text": {"ppl": "x"}}}, "damping has no value"),
        ({"search": {"over": {"model": ["x"]}, "text": {"ppl": "x"}}}, "cannot be over model"),
        ({"search": {"over": {"damping": [1]}, "text": {"pl": "x"}}}, "Did you mean 'ppl'?"),
        ({"tasks": ["piqa"]}, "tasks is ['piqa']; it takes the keys names, limit, shots"),
        ({"title": 3}, "title: Input should be a valid string"),
        ({"axes": {"a": {"x": 3}}}, "axes.a.x is 3; a label stands for settings, such as x: {"),
        ({"axes": {"a": 3}}, "axes.a is 3; an axis is a list of values of the option that"),
        ({"axes": {"seed": [0, None]}}, "axes.seed has None among its values; a label is one"),
        (
            {"search": {"over": {"treshold": [1]}, "text": {"ppl": "x"}}},
            "no option 'treshold'",
        ),
    ],
)
def test_a_wrong_plan_is_named(changes, said, tmp_path):
    assert said in refusal(plan(tmp_path, **changes), tmp_path)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("title: a\nsettings: {bits: 2, bits: 3}\n")
    with pytest.raises(InputError, match="'bits' stands twice"):
        read_plan(str(file))


def test_values_mean_what_they_mean_in_a_file_of_settings(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(
        """
        settings: {damping: 1e-3, refit: off, correct: off, revision: 1e3, length: ~}
        axes: {ridge: [1e-1, 2], refit: [off, scales], bits: {"3": {bits: "3"}, 2: {seed: 1e2}}}
        skip: [{refit: off, bits: ["3", 2], ridge: 1e-1}]
        search: {over: {damping: [1e-2]}, text: {ppl: x}}
        texts: {a: {ppl: x}}
        scales: {other: {settings: {damping: 1e2}, skip: [{ridge: 2}]}}
        """
    )
    plan = read_plan(str(file))
    assert plan.settings == {
        "damping": 0.001,
        "refit": "off",
        "correct": False,
        "revision": "1e3",
        "length": None,
    }
    assert plan.axes["ridge"] == [0.1, 2] and type(plan.axes["ridge"][1]) is int
    assert plan.axes["refit"] == ["off", "scales"]
    assert plan.axes["bits"] == {"3": {"bits": 3}, 2: {"seed": "1e2"}}  # no whole number
    assert plan.skip == [{"refit": "off", "bits": ["3", 2], "ridge": 0.1}]
    assert plan.search.over == {"damping": [0.01]}
    other = read_plan(str(file), "other")
    assert other.settings["damping"] == 100.0 and other.skip == [{"ridge": 2}]


def test_a_mapping_may_take_over_another(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(
        "axes: {bits: {a: &a {bits: 3, damping: 1e-3}, b: {<<: *a, bits: 2}}}\n"
        "texts: {a: {ppl: x}}\n"
    )
    assert read_plan(str(file)).axes["bits"]["b"] == {"bits": 2, "damping": 0.001}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1",
        "a: [",
        "x: 2026-01-01",
        "a: &a [*a]",
        "settings: &a {b: *a}",
        "scales: &a {b: {scales: *a}}",
    ],
)
def test_no_plan_at_all(text, tmp_path):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(InputError, match=r"plan\.yaml"):
        read_plan(str(tmp_path / "plan.yaml"))


def test_an_unknown_scale_or_recipe_names_those_that_there_are(tmp_path):
    assert "has no scale big; it has: less" in refusal(
        plan(tmp_path, scales={"less": {}}), tmp_path, scale="big"
    )
    with pytest.raises(InputError, match="there is no plan tabel1"):
        read_plan("tabel1")


def test_the_recipes_are_where_the_package_is():
    assert all(file.is_file() for file in recipes().values())


def test_a_key_does_not_depend_on_where_the_data_lies_or_how_settings_are_spelt(tmp_path):
    def keys(**how):
        return [x.key for x in cells_of(read_plan(written(plan(tmp_path), tmp_path)), **how)]

    assert keys() == keys(data_dir="/elsewhere")
    respelt = plan(tmp_path)
    respelt["settings"]["wbits"] = respelt["settings"].pop("bits")
    assert keys() == [x.key for x in cells_of(read_plan(written(respelt, tmp_path)))]
    plain = plan(tmp_path)
    plain["settings"] |= {"damping": 0.01, "rewrite": "off", "seed": 0}  # the defaults
    assert keys() == [x.key for x in cells_of(read_plan(written(plain, tmp_path)))]
    other = plan(tmp_path)
    other["settings"]["damping"] = 0.02
    changed = [x.key for x in cells_of(read_plan(written(other, tmp_path)))]
    assert changed[0] == keys()[0] and not set(changed[1:]) & set(keys())


def test_a_model_among_the_settings_is_an_axis(tmp_path):
    values = plan(tmp_path, axes={}, compare=None)
    values["settings"]["model"] = "m"
    cells = cells_of(read_plan(written(values, tmp_path)))
    assert [dict(cell.labels) for cell in cells] == [{"model": "m"}, {"model": "m"}]


def test_originals_are_called_by_the_axis_that_names_the_model(tmp_path):
    axes = {"size": {"small": {"model": "a"}, "large": {"model": "b"}}, "seed": [0, 1]}
    cells = cells_of(read_plan(written(plan(tmp_path, axes=axes, compare=None), tmp_path)))
    assert [dict(cell.labels) for cell in cells[:2]] == [{"size": "small"}, {"size": "large"}]


def test_a_folder_of_the_name_of_a_recipe_is_no_plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table4").mkdir()
    assert read_plan("table4").name == "table4"


def test_cells_that_differ_in_widths_or_runtime_have_keys_of_their_own(tmp_path):
    names = [f"model.layers.{n}.mlp.up_proj" for n in range(2)]
    for width in (2, 8):
        lines = [f"{name}: {width}\n" for name in names]
        (tmp_path / f"{width}.yaml").write_text("".join(lines))
    (tmp_path / "same.yaml").write_text((tmp_path / "8.yaml").read_text())
    ways = {
        "none": {},
        "narrow": {"allocation": str(tmp_path / "2.yaml")},
        "wide": {"allocation": str(tmp_path / "8.yaml")},
        "wide again": {"allocation": str(tmp_path / "same.yaml")},
        "vLLM": {"runtime": "vllm"},
    }
    axes = {"model": [str(tmp_path / "model")], "way": ways}
    settings = {"corpus": "sotu", "method": "rtn", "group_size": 16, "dtype": "half"}
    written_plan = written(plan(tmp_path, axes=axes, compare=None, settings=settings), tmp_path)
    keys = [cell.key for cell in cells_of(read_plan(written_plan))[1:]]
    assert len(set(keys)) == 4 and keys[2] == keys[3]
