"""Flat settings: what stands for what, what wins, and what is refused."""

from itertools import product

import pytest
from q2n.wrappers.steps import STEP_OPTIONS, STEPS

from q2n.config import QUALITIES, REFITS, QuantizeConfig, step_options
from q2n.errors import InputError
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.wrappers.correction import InputErrorCorrection
from q2n.wrappers.nullspace import NullSpace
from q2n.wrappers.output_scales import OutputScales


def config(**settings) -> QuantizeConfig:
    return QuantizeConfig.from_settings(settings)


def parts(settings: QuantizeConfig) -> list[type]:
    """Classes of the method, from the outermost inwards."""
    method, found = settings.build_method(), []
    while method is not None:
        found.append(type(method))
        method = getattr(method, "inner", None)
    return found


def test_nothing_but_the_method_by_default():
    plain = config()
    assert parts(plain) == [GPTQ] and plain.quality is None
    assert plain.build_block_refit() is None and plain.build_model_refit() is None


def test_good_is_the_closed_forms_and_best_adds_the_refit():
    good, best = config(quality="good"), config(quality="best")
    for found in (good, best):
        assert parts(found) == [OutputScales, InputErrorCorrection, GPTQ]
        assert found.build_method().objective == "cross" and found.build_block_refit() is None
    assert good.build_model_refit() is None
    assert best.build_model_refit().steps == best.refit_steps
    assert config(quality="best", method="rtn").build_method().inner.inner == RTN(search="tuned")
    quip = config(quality="good", method="quip").settings()
    assert quip["grid"] == "trellis"
    assert "search" not in quip  # it has no such option
    assert config(method="quip").settings()["grid"] == "b"


@pytest.mark.parametrize("quality", QUALITIES)
def test_what_is_given_beside_a_quality_wins(quality):
    found = config(quality=quality, correct=False, refit="block", refit_steps=7)
    assert parts(found) == [OutputScales, GPTQ]
    assert found.build_model_refit() is None and found.build_block_refit().steps == 7
    assert parts(config(quality=quality, nullspace="off")) == [InputErrorCorrection, GPTQ]
    assert parts(config(quality=quality, nullspace=False)) == [InputErrorCorrection, GPTQ]
    assert parts(config(quality=quality, nullspace="paper")) == [
        NullSpace,
        InputErrorCorrection,
        GPTQ,
    ]
    step = config(quality=quality, ridge=0.25, correction_ridge=0.75).build_method()
    assert (step.ridge, step.inner.correction_ridge) == (0.25, 0.75)
    assert config(quality=quality, search="none").build_method().inner.inner == GPTQ()
    assert config(quality=quality, correct=None).correct  # None means: not given


def test_a_quality_is_the_same_as_what_it_stands_for():
    for quality, settings in QUALITIES.items():
        own = {key: x for key, x in settings.items() if key != "grid"}
        found, plain = config(quality=quality), config(**own)
        assert found.build_method() == plain.build_method()
        assert found.build_model_refit() == plain.build_model_refit()


@pytest.mark.parametrize(
    ("asked", "name"), [(True, "cross"), ("true", "cross"), (False, "off"), ("false", "off")]
)
def test_a_step_without_a_name_is_cross(asked, name):
    assert config(nullspace=asked).nullspace == name


@pytest.mark.parametrize("name", STEPS)
def test_every_step_builds_and_takes_its_own_options(name):
    plain, changed = config(nullspace=name), config(nullspace=name, threshold=0.3)
    assert parts(plain) == [STEP_OPTIONS[name], GPTQ]
    assert plain.build_method() == STEPS[name](GPTQ())
    assert changed.build_method().threshold == 0.3 != plain.build_method().threshold


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quality": "perfect"}, ["quality", "'perfect'", *QUALITIES]),
        ({"quality": True}, ["quality", "True", *QUALITIES]),
        ({"refit": "sometimes"}, ["refit", "'sometimes'", *REFITS]),
        ({"nullspace": "sometimes"}, ["nullspace", "'sometimes'", "off", *STEPS]),
        ({"refit": True}, ["refit", "True", "str"]),
        ({"correct": "yes"}, ["correct", "'yes'", "bool"]),
        ({"correct": True, "correction_ridge": "1"}, ["correction_ridge", "float"]),
        ({"refit": "block", "refit_steps": 2.5}, ["refit_steps", "2.5", "int"]),
    ],
)
def test_values_that_nobody_knows_are_refused_with_those_there_are(settings, words):
    with pytest.raises(InputError) as failure:
        config(**settings)
    assert all(word in str(failure.value) for word in words), failure.value


@pytest.mark.parametrize(
    ("settings", "name", "switch"),
    [
        ({"ridge": 0.1}, "ridge", "--nullspace"),
        ({"threshold": 0.1}, "threshold", "--nullspace"),
        ({"nullspace": "off", "per": "row"}, "per", "--nullspace"),
        ({"nullspace": "cross", "rule": "ratio"}, "rule", "--nullspace"),
        ({"nullspace": True, "solver": "adam"}, "solver", "--nullspace"),
        ({"nullspace": "paper", "directions": "all"}, "directions", "--nullspace"),
        ({"quality": "best", "skip_layers": ["*"]}, "skip_layers", "--nullspace"),
        ({"correction_ridge": 0.1}, "correction_ridge", "--correct"),
        ({"quality": "good", "correct": False, "correction_ridge": 1}, "correction", "--correct"),
        ({"method": "rtn", "act_order": True}, "act_order", "method rtn"),
        ({"nonsense": 1}, "nonsense", "method gptq"),
    ],
)
def test_an_option_of_what_is_not_chosen_names_its_switch(settings, name, switch):
    with pytest.raises(InputError) as failure:
        config(**settings)
    assert name in str(failure.value) and switch in str(failure.value), failure.value


COMBINATIONS = list(product((False, True), ("off", *STEPS), REFITS))


@pytest.mark.parametrize(("correct", "nullspace", "refit"), COMBINATIONS)
@pytest.mark.parametrize("quality", [None, *QUALITIES])
def test_settings_give_the_same_configuration_back(quality, correct, nullspace, refit):
    options = {"ridge": 0.3} if nullspace != "off" else {}
    options |= {"correction_ridge": 0.7} if correct else {}
    if correct and nullspace == "released":
        options["reference"] = "original"  # as the error without it says
    first = config(
        model="m", output="o", bits=3, quality=quality, correct=correct, nullspace=nullspace,
        refit=refit, refit_steps=5, **options,
    )  # fmt: skip
    second = QuantizeConfig.from_settings(first.settings())
    assert second.settings() == first.settings()
    assert second.build_method() == first.build_method()
    assert second.build_block_refit() == first.build_block_refit()
    assert second.build_model_refit() == first.build_model_refit()
    assert first.build_method() != GPTQ(bits=3) or (not correct and nullspace == "off")
    assert (first.build_block_refit() is None) == (refit in ("off", "model"))
    assert (first.build_model_refit() is None) == (refit in ("off", "block"))


def test_the_released_step_on_corrected_weights_is_refused_with_its_reason():
    """The correction has no error feedback whose working copy the step could take."""
    with pytest.raises(InputError, match="corrected has none"):
        config(correct=True, nullspace="released").build_method()


def test_every_option_of_the_steps_is_one_flag():
    names = [option.name for option in step_options()]
    assert len(names) == len(set(names))
    assert {"correction_ridge", "ridge", "threshold", "objective", "rule"} <= set(names)
    assert "inner" not in names
    ridge = next(option for option in step_options() if option.name == "ridge")
    assert "[paper, released]" in ridge.help and "output, cross" in ridge.help
