"""Presets are names for settings: each is the same as these settings written out."""

import pytest

from q2n.config.options import CHANGES, table
from q2n.config.owners import Plan, build_method, build_plan, storage
from q2n.config.presets import (
    METHOD_PRESETS,
    PRESET_SUMMARIES,
    QUALITIES,
    RELEASED_NULLSPACE,
)
from q2n.config.reading import read_settings
from q2n.config.settings import Settings
from q2n.errors import InputError
from q2n.grids.granularity import PerGroup
from q2n.grids.per_token import TokenGrid
from q2n.grids.uniform import UniformGrid
from q2n.methods import METHODS
from q2n.methods.gptq import GPTQ
from q2n.methods.ldlq import LDLQ
from q2n.methods.owq import OWQ
from q2n.methods.rtn import RTN
from q2n.refit.model import ModelRefit
from q2n.refit.rotation import RotationLearning
from q2n.rewrites.awq import AWQ
from q2n.transforms.model_changes import ModelChanges
from q2n.wrappers.correction import InputErrorCorrection
from q2n.wrappers.incoherence import Incoherence
from q2n.wrappers.nullspace import NullSpace
from q2n.wrappers.output_scales import OutputScales

NAMES = [*METHODS, *METHOD_PRESETS]
QUALITY_NAMES = [None, *QUALITIES]


def read(**settings) -> Settings:
    return read_settings(settings)


def built(**settings) -> Plan:
    """Everything that settings describe."""
    return build_plan(read(**settings))


def written_out(method: str, quality: str | None) -> dict:
    """The settings that both names stand for."""
    preset = METHOD_PRESETS.get(method, {"method": method})
    return {**preset, **(QUALITIES[quality][method] if quality else {})}


def test_quip_is_ldlq_in_a_random_basis():
    plan = built(method="quip", bits=2)
    inner = LDLQ(bits=2, damping=0.0201, clip_sigma=2.4, clamp_first=True)
    assert plan.method == Incoherence(inner=inner, incoherence_rescale=True)
    assert 0.0201 == pytest.approx((1 + 0.01) * (1 + 0.01) - 1)  # before and after its rotation
    assert plan.changes.none


def test_quarot_is_rotated_gptq_on_a_signed_grid():
    plan = built(method="quarot", bits=4)
    assert plan.method == GPTQ(bits=4, grid="signed", symmetric=True, clip="mse", act_order=False)
    assert plan.changes == ModelChanges(rotate="hadamard", activation_bits=4)
    assert plan.storage.runtime and not storage(plan.method, ModelChanges()).runtime


def test_awq_is_rounding_after_scales_and_clips():
    plan = built(method="awq", bits=3, group_size=64)
    assert (plan.method, plan.rewrite) == (RTN(bits=3, group_size=64), AWQ(rewrite_clip=True))
    assert plan.grid == UniformGrid(bits=3, granularity=PerGroup(64, ragged=True))
    assert plan.reads_text and plan.streams == 1
    assert plan.title == "AWQ scales and clipping, rtn"


def test_a_rewrite_searches_in_the_blocks_of_a_type():
    plan = built(method="gptq", rewrite="awq", grid="q4_k")
    assert plan.grid == UniformGrid(bits=4, granularity=PerGroup(32, ragged=True))


def test_a_method_without_such_bits_is_refused():
    with pytest.raises(InputError, match="pbllm has none"):
        built(method="pbllm", rewrite="awq")
    assert built(method="pbllm", rewrite="smoothquant").grid is None


@pytest.mark.parametrize("word", ["off", False])
def test_a_rewrite_that_is_off_is_none(word):
    assert read(rewrite=word) == read()
    assert read(rewrite="awq").fingerprint()["rewrite"] == "awq"


def test_an_option_of_a_rewrite_that_is_off_is_refused():
    with pytest.raises(InputError, match="belongs to --rewrite awq, which is off"):
        read(rewrite_clip=True)
    with pytest.raises(InputError, match="belongs to --rewrite smoothquant"):
        read(rewrite="awq", smooth_alpha=0.7)


def test_omniquant_rounds_in_learned_ranges():
    plan = built(method="omniquant", bits=2, group_size=64)
    assert plan.method == RTN(bits=2, group_size=64, clip="learned")
    assert plan.reads_text and plan.streams == 2 and plan.alone_for == "--clip learned"
    assert built(method="ptq161").alone_for == "--method ptq161"
    assert built(method="gptq").alone_for is None


def test_spinquant_is_quarot_with_a_learned_rotation():
    plan, quarot = built(method="spinquant", bits=4), built(method="quarot", bits=4)
    assert plan.method == quarot.method
    assert plan.changes == ModelChanges(rotate="learned", activation_bits=4)
    assert quarot.rotation_learning is None
    learning = RotationLearning(steps=100, windows=4, rate=0.3, loss="divergence", weights=None)
    assert plan.rotation_learning == learning
    own = {
        "rotate_steps": 7,
        "rotate_rate": 0.5,
        "rotate_windows": 2,
        "rotate_loss": "cross_entropy",
        "rotate_weight_bits": 4,
    }
    changed = built(method="spinquant", **own).rotation_learning
    assert changed == RotationLearning(
        steps=7, windows=2, rate=0.5, loss="cross_entropy", weights=TokenGrid(bits=4)
    )


def test_a_learned_rotation_reads_text():
    plan = built(method="rtn", rotate="learned", activation_bits=8)
    assert plan.reads_text and plan.streams == 0  # no text runs through the blocks


@pytest.mark.parametrize("quality", QUALITY_NAMES)
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_its_settings_written_out(name, quality):
    settings = read(method=name, quality=quality)
    assert build_plan(settings) == built(**written_out(name, quality))
    assert settings.run.method == name and settings.run.quality == quality
    assert settings.method in METHODS


@pytest.mark.parametrize("quality", QUALITY_NAMES)
@pytest.mark.parametrize("name", NAMES)
def test_flat_settings_of_a_preset_read_back_equal(name, quality):
    settings = read(method=name, quality=quality)
    again = read_settings(settings.flat())
    assert again == settings and build_plan(again) == build_plan(settings)


@pytest.mark.parametrize("name", NAMES)
def test_good_adds_closed_forms_best_adds_gradients(name):
    plain, good, best = (built(method=name, quality=quality) for quality in QUALITY_NAMES)
    method = good.method
    if isinstance(method, Incoherence):
        method = method.inner
    assert type(method) is OutputScales and method.target == "full_precision"
    assert type(method.inner) is InputErrorCorrection
    assert best.method.reads_gradients == bool(_without(name)) and not good.method.reads_gradients
    assert built(method=name, quality="best", **_without(name)).method == good.method
    assert plain.changes == good.changes == best.changes
    assert good.model_refit is good.block_refit is best.block_refit is None
    assert best.model_refit == ModelRefit(steps=32)


def _without(name):
    """The settings without what `best` adds beside the refit."""
    has = name in ("gptq", "ldlq", "quip", "quarot", "spinquant")
    return {"output_feedback": False} if has else {}


def test_good_chooses_the_best_grid_of_each_method():
    grids = {}
    for name in NAMES:
        options = read(method=name, quality="good").options
        (own,) = [values for owner, values in options.items() if owner in METHODS]
        grids[name] = own.get("clip"), own.get("grid")
    assert grids == {
        "rtn": ("scale_zero", "uniform"),
        "gptq": ("scale_zero", "uniform"),
        "ldlq": (None, "trellis"),
        "pbllm": (None, None),
        "leanquant": (None, None),
        "owq": ("scale_zero", "uniform"),
        "exl3": (None, None),
        "ptq161": (None, None),
        "quip": (None, "trellis"),
        "quarot": ("mse", "signed"),
        "awq": ("scale_zero", "uniform"),
        "omniquant": ("learned", "uniform"),
        "spinquant": ("mse", "signed"),
    }
    assert read(method="quip").options["ldlq"]["grid"] == "uniform"


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_quality_leaves_out_what_makes_quip_worse(quality):
    good = build_method(read(method="quip", quality=quality))
    wrapped = read(
        method="ldlq", quality=quality, incoherence=True, damping=0.0201, descent_passes=1
    )
    assert good == build_method(wrapped) and not good.incoherence_rescale
    even = read(method="quip", quality=quality, grid="uniform").options["ldlq"]
    assert (even["clip_sigma"], even["clamp_first"]) == (None, False)


@pytest.mark.parametrize("quality", QUALITIES)
def test_what_is_set_beside_a_quality_wins(quality):
    own = {"range_trials": True, "output_feedback": quality == "best"}
    plan = built(quality=quality, correct=False, refit="block", refit_steps=7)
    assert plan.method == OutputScales(inner=GPTQ(clip="scale_zero", **own))
    assert plan.model_refit is None and plan.block_refit.steps == 7
    without = build_method(read(quality=quality, output_scales=False))
    assert without == InputErrorCorrection(inner=GPTQ(clip="scale_zero", **own))
    both = build_method(read(quality=quality, nullspace="paper"))
    assert type(both) is OutputScales and type(both.inner) is NullSpace
    options = {"scales_ridge": 0.25, "correction_ridge": 0.75, "clip": "minmax"}
    method = build_method(read(quality=quality, **options))
    assert (method.scales_ridge, method.inner.correction_ridge) == (0.25, 0.75)
    assert method.inner.inner == GPTQ(**own)
    assert build_method(read(quality=quality, method="rtn")).inner.inner == RTN(clip="scale_zero")


def test_what_is_set_beside_a_method_preset_wins():
    plan = built(method="quarot", rotate="none", clip="minmax", act_order=True, format="native")
    assert plan.changes == ModelChanges(activation_bits=4)
    assert plan.method == GPTQ(grid="signed", symmetric=True, clip="minmax", act_order=True)
    assert built(method="quarot", activation_bits=16, rotate=False).changes.none
    quip = build_method(
        read(
            method="quip",
            damping=0.5,
            clip_sigma=2.0,
            clamp_first=False,
            incoherence="blocks",
            incoherence_rescale=False,
        )
    )
    assert quip == Incoherence(inner=LDLQ(damping=0.5, clip_sigma=2.0), projection="blocks")
    plain = build_method(read(method="quip", incoherence=False))
    assert plain == LDLQ(damping=0.0201, clip_sigma=2.4, clamp_first=True)
    with pytest.raises(InputError, match="for another grid, --method ldlq --incoherence"):
        build_method(read(method="quip", grid="trellis"))


def test_quality_overrides_the_preset_of_the_method():
    good = read(method="quip", quality="good")
    assert good.options["ldlq"]["grid"] == "trellis" and good.options["ldlq"]["damping"] == 0.0201


def test_null_space_presets_are_their_options():
    paper, released = (build_method(read(nullspace=name)) for name in ("paper", "released"))
    assert paper == NullSpace(inner=GPTQ())
    assert released == NullSpace(inner=GPTQ(), **RELEASED_NULLSPACE["gptq"])
    assert build_method(read(nullspace=True)) == paper
    mixed = build_method(read(nullspace="released", solver="closed", threshold=0.3))
    changed = {**RELEASED_NULLSPACE["gptq"], "solver": "closed", "threshold": 0.3}
    assert mixed == NullSpace(inner=GPTQ(), **changed)


@pytest.mark.parametrize(
    ("method", "solver", "skipped"),
    [
        ("gptq", "adam", ("*down_proj",)),
        ("pbllm", "closed", ("*down_proj",)),
        ("leanquant", "closed", ("*down_proj",)),
        ("owq", "closed", ("*down_proj",)),
        ("quarot", "closed", ()),
    ],
)
def test_released_is_the_authors_file_for_each_method(method, solver, skipped):
    step = build_method(read(method=method, nullspace="released"))
    plain = build_method(read(method=method))
    assert step == NullSpace(
        inner=plain,
        solver=solver,
        skip_layers=skipped,
        index="released",
        gram="mean_activation",
        reference="compensated",
    )


@pytest.mark.parametrize("method", ["rtn", "ldlq", "quip"])
def test_released_is_refused_where_the_authors_code_does_nothing(method):
    with pytest.raises(InputError, match=f"does nothing for {method};.*use --nullspace paper"):
        read(method=method, nullspace="released")
    compensated = read(method="ldlq", nullspace=True, reference="compensated")
    assert type(build_method(compensated).inner) is LDLQ


def test_presets_hold_nothing_that_nobody_reads():
    """Every setting of a preset is an option of the run, the method or what takes part."""
    for name, quality in ((name, quality) for name in NAMES for quality in QUALITY_NAMES):
        settings = read(method=name, quality=quality)
        flat = settings.flat()
        for key, value in written_out(name, quality).items():
            assert key == "method" or flat[key] == value, (name, quality, key)
    assert PRESET_SUMMARIES.keys() == METHOD_PRESETS.keys()
    assert all(name in table().methods for name in NAMES)
    assert all(set(by_method) == set(NAMES) for by_method in QUALITIES.values())


def test_defaults_of_a_method_are_its_own():
    assert build_method(read(method="owq")) == OWQ()  # clip scale_zero, where gptq has minmax
    assert build_method(read(method="gptq")) == GPTQ()
    assert read(method="leanquant").options["leanquant"]["damping"] == 0.1
    assert read().options[CHANGES]["activation_bits"] == 16
