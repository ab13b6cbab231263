"""Flat settings: what stands for what, what wins, and what is refused."""

from itertools import product
from typing import get_args

import pytest

from q2n.config.owners import build_method, build_plan
from q2n.config.presets import ALIASES, QUALITIES
from q2n.config.reading import not_usual, read_settings
from q2n.config.settings import RunSettings, Settings
from q2n.errors import InputError
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.wrappers.correction import InputErrorCorrection
from q2n.wrappers.incoherence import Incoherence
from q2n.wrappers.nullspace import NullSpace
from q2n.wrappers.output_scales import OutputScales

NULLSPACES, TARGETS, REFITS = (
    get_args(RunSettings.__annotations__[name]) for name in ("nullspace", "output_scales", "refit")
)


def read(**settings) -> Settings:
    return read_settings(settings)


def parts(settings: Settings) -> list[type]:
    """Classes of the method, from the outermost inwards."""
    method, classes = build_method(settings), []
    while method is not None:
        classes.append(type(method))
        method = getattr(method, "inner", None)
    return classes


def test_nothing_but_the_method_by_default():
    plain = read()
    assert parts(plain) == [GPTQ] and plain.run.quality is None
    assert build_method(plain) == GPTQ()
    plan = build_plan(plain)
    assert plan.block_refit is None and plan.model_refit is None and plan.changes.none


@pytest.mark.parametrize(
    ("name", "asked", "word"),
    [
        ("nullspace", True, "paper"),
        ("nullspace", False, "off"),
        ("output_scales", True, "full_precision"),
        ("output_scales", False, "off"),
        ("incoherence", True, "kronecker"),
        ("incoherence", False, "off"),
        ("refit", False, "off"),  # what YAML reads in `refit: off`
    ],
)
def test_a_bare_flag_stands_for_a_word(name, asked, word):
    assert getattr(read(**{name: asked}).run, name) == word


def test_rotation_alone_is_hadamard():
    for asked, word in ((True, "hadamard"), (False, "none")):
        assert read(rotate=asked).options["model changes"]["rotate"] == word


def test_wrappers_go_around_the_method_in_one_order():
    everything = {"correct": True, "nullspace": True, "output_scales": True, "incoherence": True}
    inner = [OutputScales, NullSpace, InputErrorCorrection]
    assert parts(read(**everything)) == [Incoherence, *inner, GPTQ]
    around_method = read(**everything, incoherence_around="method")
    assert parts(around_method) == [*inner, Incoherence, GPTQ]
    assert parts(read(nullspace=True, output_scales="own")) == [OutputScales, NullSpace, GPTQ]


@pytest.mark.parametrize("name", NULLSPACES[1:])
def test_the_null_space_step_takes_its_own_options(name):
    plain, changed = read(nullspace=name), read(nullspace=name, threshold=0.3)
    assert parts(plain) == [NullSpace, GPTQ]
    assert build_method(changed).threshold == 0.3 != build_method(plain).threshold


@pytest.mark.parametrize("name", TARGETS[1:])
def test_output_scales_take_their_own_options(name):
    plain, changed = read(output_scales=name), read(output_scales=name, scales_ridge=0.3)
    assert build_method(plain) == OutputScales(inner=GPTQ(), target=name)
    assert build_method(changed) == OutputScales(inner=GPTQ(), target=name, scales_ridge=0.3)


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_the_setting(alias):
    name, value = ALIASES[alias], {"lambda": 0.7, "wbits": 2}.get(alias, 64)
    beside = {"nullspace": True} if alias == "lambda" else {}
    aliased = read(**{alias: value}, **beside)
    assert aliased == read(**{name: value}, **beside)
    assert aliased != read(**beside) and aliased.flat()[name] == value


@pytest.mark.parametrize("alias", ALIASES)
def test_a_setting_under_both_names_is_refused(alias):
    name = ALIASES[alias]
    for first, second in ((alias, name), (name, alias)):
        with pytest.raises(InputError, match=f"{second}.* same setting: give one of them"):
            read(nullspace=True, **{first: 3, second: 3})


def test_none_means_not_set():
    assert read(quality="good", correct=None).run.correct
    assert read(group_size=None) == read()


def test_whole_numbers_are_numbers():
    settings = read(nullspace=True, threshold=1, ridge=0)
    method = build_method(settings)
    assert (method.threshold, method.ridge) == (1.0, 0.0)
    assert isinstance(method.threshold, float) and isinstance(settings.flat()["ridge"], float)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quality": "perfect"}, ["quality", "'perfect'", *QUALITIES]),
        ({"quality": True}, ["quality", "True", *QUALITIES]),
        ({"refit": "sometimes"}, ["refit", "'sometimes'", *REFITS]),
        ({"nullspace": "sometimes"}, ["nullspace", "'sometimes'", *NULLSPACES]),
        ({"nullspace": "true"}, ["nullspace", "'true'", *NULLSPACES]),
        ({"output_scales": "cross"}, ["output_scales", "'cross'", *TARGETS]),
        ({"refit": True}, ["refit", "True", *REFITS]),
        ({"correct": "yes"}, ["correct", "'yes'", "true or false"]),
        ({"correct": True, "correction_ridge": "1"}, ["correction_ridge", "'1'", "number"]),
        ({"refit": "block", "refit_steps": 2.5}, ["refit_steps", "2.5", "whole number"]),
        ({"bits": 7}, ["bits is 7; it takes one of 2, 3, 4, 5, 6, 8"]),
        ({"bits": True}, ["bits is True; it takes one of 2, 3, 4, 5, 6, 8"]),
        ({"length": 1}, ["length is 1; it takes a whole number at least 2"]),
        ({"method": "gptk"}, ["unknown method 'gptk'", "quarot", "Did you mean 'gptq'?"]),
        ({"ignore": "lm_head"}, ["ignore is 'lm_head'; it takes a list of texts"]),
    ],
)
def test_a_refused_value_names_those_there_are(settings, words):
    with pytest.raises(InputError) as failure:
        read(**settings)
    assert all(word in str(failure.value) for word in words), failure.value


@pytest.mark.parametrize(
    ("settings", "name", "switch"),
    [
        ({"ridge": 0.1}, "ridge", "--nullspace"),
        ({"lambda": 0.1}, "ridge", "--nullspace"),
        ({"threshold": 0.1}, "threshold", "--nullspace"),
        ({"nullspace": "off", "rule": "ratio"}, "rule", "--nullspace"),
        ({"output_scales": True, "rule": "ratio"}, "rule", "--nullspace"),
        ({"output_scales": True, "solver": "adam"}, "solver", "--nullspace"),
        ({"nullspace": "paper", "adam_steps": 50}, "adam_steps", "--solver adam"),
        ({"nullspace": "released", "solver": "closed", "adam_rate": 1.0}, "rate", "--solver adam"),
        ({"adam_rate": 1e-3}, "adam_rate", "--nullspace"),
        ({"quality": "best", "skip_layers": ["*"]}, "skip_layers", "--nullspace"),
        ({"scales_per": "row"}, "scales_per", "--output-scales"),
        ({"nullspace": "paper", "scales_directions": "all"}, "directions", "--output-scales"),
        ({"incoherence_rescale": True}, "incoherence_rescale", "--incoherence"),
        ({"correction_ridge": 0.1}, "correction_ridge", "--correct"),
        ({"quality": "good", "correct": False, "correction_ridge": 1}, "correction", "--correct"),
        ({"method": "rtn", "act_order": True}, "act_order", "method rtn"),
        ({"method": "quip", "act_order": True}, "act_order", "method ldlq"),
        ({"nonsense": 1}, "nonsense", "method gptq"),
        ({"group_sise": 64}, "group_sise", "Did you mean 'group_size'?"),
        ({"target": "own"}, "target", "method gptq"),  # said by --output-scales
        ({"projection": "blocks"}, "projection", "method gptq"),  # said by --incoherence
    ],
)
def test_option_of_an_unchosen_part_names_its_switch(settings, name, switch):
    with pytest.raises(InputError) as failure:
        read(**settings)
    assert name in str(failure.value) and switch in str(failure.value), failure.value


@pytest.mark.parametrize(
    ("settings", "name", "switch", "on"),
    [
        ({"grid": "q4_0", "clip": "mse"}, "clip", "--grid uniform", {"grid": "uniform"}),
        ({"ragged_groups": True}, "ragged_groups", "--group-size", {"group_size": 64}),
        ({"kl": False}, "kl", "--ppl", {"ppl": "ptb"}),
        ({"stream_share": 0.5}, "stream_share", "--correct", {"correct": True}),
        ({"cross_tokens": 7}, "cross_tokens", "--correct", {"output_scales": "own"}),
        ({"gradient_tokens": 7}, "gradient_tokens", "--output-feedback", {"output_feedback": True}),
        (
            {"output_scales": "own", "scales_threshold": 0.3},
            "scales_threshold",
            "--scales-directions",
            {"scales_directions": "principal"},
        ),
        (
            {"nullspace": "paper", "rule": "matrix_rank", "index": "released"},
            "index",
            "--rule ratio",
            {"rule": "ratio"},
        ),
        ({"method": "owq", "split": "layer"}, "split", "--target-bits", {"target_bits": 3.1}),
        (
            {"method": "owq", "target_rank": 2, "narrow_ratio": 0.5},
            "narrow_ratio",
            "--target-bits",
            {"target_bits": 3.1, "target_rank": None},
        ),
    ],
)
def test_what_does_nothing_is_refused(settings, name, switch, on):
    with pytest.raises(InputError, match=f"'{name}' does nothing without {switch}"):
        read(**settings)
    read(**{**settings, **on})


def test_what_a_preset_says_is_not_refused_where_it_does_nothing():
    """As it stands in a printed configuration."""
    off = {"quality": "good", "correct": False, "output_scales": "off"}
    assert read(**off).flat()["stream_share"] == 0.5
    read(**off, stream_share=0.5)
    with pytest.raises(InputError, match="stream_share"):
        read(**off, stream_share=0.4)
    read(**read(quality="good", format="gguf").flat())


def test_none_takes_away_what_a_preset_says():
    assert read(method="quip").flat()["clip_sigma"] == 2.4
    assert read(method="quip", clip_sigma=None).flat()["clip_sigma"] is None
    assert read(method="quip", damping=None) == read(method="quip")  # no option of None


COMBINATIONS = list(product((False, True), NULLSPACES, TARGETS, REFITS))


@pytest.mark.parametrize(("correct", "nullspace", "output_scales", "refit"), COMBINATIONS)
@pytest.mark.parametrize("quality", [None, *QUALITIES])
def test_flat_settings_read_again_are_the_same(quality, correct, nullspace, output_scales, refit):
    options = {"ridge": 0.3} if nullspace != "off" else {}
    options |= {"scales_ridge": 0.4} if output_scales != "off" else {}
    options |= {"correction_ridge": 0.7} if correct else {}
    options |= {"refit_steps": 5} if refit != "off" else {}
    if correct and nullspace == "released":
        options["reference"] = "original"  # as the error without it says
    first = read(
        model="m", output="o", bits=3, quality=quality, correct=correct, nullspace=nullspace,
        output_scales=output_scales, refit=refit, **options,
    )  # fmt: skip
    second = read_settings(first.flat())
    assert second == first and second.flat() == first.flat()
    plan = build_plan(first)
    assert build_plan(second) == plan
    plain = not correct and nullspace == output_scales == "off"
    assert (parts(first) == [GPTQ]) == plain
    assert (plan.block_refit is None) == (refit in ("off", "model"))
    assert (plan.model_refit is None) == (refit in ("off", "block"))


def test_the_released_step_on_corrected_weights_is_refused():
    """The correction has no error feedback whose working copy the step could take."""
    with pytest.raises(InputError, match="not around correction; use --reference original"):
        build_method(read(correct=True, nullspace="released"))
    assert parts(read(method="rtn", nullspace="paper")) == [NullSpace, RTN]


@pytest.mark.parametrize(
    ("settings", "grid", "bits"),
    [
        ({"grid": "q5_k"}, "q5_k", 5),
        ({"format": "gguf"}, "iq4_nl", 4),
        ({"format": "gguf", "bits": 2, "quality": "good"}, "q2_k", 2),
        ({"format": "gguf", "grid": "q2_0", "method": "rtn"}, "q2_0", 2),
    ],
)
def test_a_grid_of_blocks_and_gguf_imply_each_other(settings, grid, bits):
    read = read_settings({"model": "m", "output": "o", **settings})
    assert read.run.format == "gguf"
    assert read.options[read.method]["grid"] == grid and read.options[read.method]["bits"] == bits


def test_a_method_without_such_grids_is_left_as_it_is():
    read = read_settings({"model": "m", "output": "o", "method": "ldlq", "format": "gguf"})
    assert read.options["ldlq"]["grid"] == "uniform"  # and the format will refuse it


def test_what_is_set_beside_a_grid_of_blocks_wins():
    read = read_settings({"model": "m", "output": "o", "grid": "q4_k", "format": "native"})
    assert read.run.format == "native"


@pytest.mark.parametrize(("bits", "name"), [(4, "iq4_nl"), (6, "q6_k"), (8, "q8_0")])
def test_bits_of_tables_and_their_type_in_a_gguf_file_agree(bits, name):
    settings = {"format": "gguf", "outside_bits": bits}
    assert read(**settings).run.gguf_outside is None
    both = read(**settings, gguf_outside=name)
    assert read_settings(both.flat()) == both
    with pytest.raises(InputError, match=f"outside_bits {bits} is gguf_outside {name}.*f16"):
        read(**settings, gguf_outside="f16")
    with pytest.raises(InputError, match="outside_bits is 5; it takes one of 4, 6, 8"):
        read(outside_bits=5)


def test_what_is_not_usual_says_what_a_run_was():
    """By the defaults of its own method: `scale_zero` is that of another."""
    settings = read_settings({"method": "gptq", "clip": "scale_zero", "ppl": "sotu"}).fingerprint()
    shown = not_usual({**settings, "model_sha256": "abc", "of_before": None})
    assert shown == {
        "model_sha256": "abc",
        "method": "gptq",
        "windows": 128,
        "length": 2048,
        "seed": 0,
        "format": None,
        "bits": 4,
        "clip": "scale_zero",
    }
    assert "clip" not in not_usual(read_settings({"method": "owq"}).fingerprint())
