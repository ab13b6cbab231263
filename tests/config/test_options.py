"""The stored table of options is what the classes say, and its names do not collide."""

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from q2n.config.catalogue import TABLE, as_json, as_markdown, build_table
from q2n.config.options import CHANGES, REWRITE_OWNERS, RUN, SWITCHES, Table, flags, table
from q2n.config.owners import BY_SWITCH, WRAPPERS
from q2n.config.presets import ALIASES, METHOD_PRESETS, WHEN_ALONE
from q2n.config.settings import RunSettings
from q2n.formats import FORMATS
from q2n.methods import METHODS
from q2n.rewrites import REWRITES
from q2n.transforms.model_changes import ModelChanges

PAGE = Path(__file__).parents[2] / "docs" / "options.md"
OF_REWRITES = {owner: REWRITES[name] for name, owner in REWRITE_OWNERS.items()}
OWNERS = {RUN: RunSettings, **METHODS, **WRAPPERS, **OF_REWRITES, CHANGES: ModelChanges}


def test_the_stored_table_is_up_to_date():
    current, stored = as_json(build_table()), TABLE.read_text(encoding="utf-8")
    assert stored == current, "the options have changed: run `make options`"
    assert table() == build_table()


def test_the_page_of_options_is_up_to_date():
    current, stored = as_markdown(build_table()), PAGE.read_text(encoding="utf-8")
    assert stored == current, "the options have changed: run `make options`"


def test_table_holds_every_field_with_its_default():
    assert list(table().owners) == list(OWNERS)
    for owner, owning in OWNERS.items():
        assert is_dataclass(owning)
        options = table().owners[owner]
        by_switch = BY_SWITCH.get(owner, ("",))[0]
        names = [item.name for item in fields(owning) if item.name not in ("inner", by_switch)]
        assert list(options) == names, owner
        for item in fields(owning):
            if item.name in options:
                assert options[item.name].default == item.default, (owner, item.name)


@pytest.mark.parametrize("owner", OWNERS)
def test_defaults_are_values_that_the_option_takes(owner):
    for name, option in table().owners[owner].items():
        assert option.kind.accepts(option.default), (owner, name)


def test_names_of_options_never_collide():
    """One flat space: only methods may share a name, as each run has one of them."""
    shared = [RUN, *WRAPPERS, *OF_REWRITES, CHANGES]
    names = [name for owner in shared for name in table().owners[owner]]
    of_methods = {name for method in METHODS for name in table().owners[method]}
    assert len(names) == len(set(names))
    assert not of_methods & set(names)
    assert not set(ALIASES) & (of_methods | set(names))  # an alias is no option by itself
    assert set(ALIASES.values()) <= of_methods | set(names)


def test_every_wrapper_has_a_switch():
    assert list(SWITCHES) == list(WRAPPERS)
    run = table().owners[RUN]
    assert all(switch in run for switch in SWITCHES.values())
    for wrapper, (field, switch) in BY_SWITCH.items():
        assert SWITCHES[wrapper] == switch and field not in table().owners[wrapper]
    everything = {
        name: option for options in table().owners.values() for name, option in options.items()
    }
    for name, words in WHEN_ALONE.items():
        assert all(everything[name].kind.accepts(word) for word in words)


def test_every_rewrite_can_be_asked_for():
    assert table().owners[RUN]["rewrite"].kind.choices == ("off", *REWRITES)
    assert list(REWRITE_OWNERS) == list(REWRITES)


def test_methods_and_formats_are_the_ones_there_are():
    run = table().owners[RUN]
    assert run["method"].kind.choices == (*METHODS, *METHOD_PRESETS)
    assert run["format"].kind.choices == tuple(FORMATS)
    assert list(table().methods) == [*METHODS, *METHOD_PRESETS]
    for entry in table().methods.values():
        assert entry.summary and entry.bits and entry.formats and entry.storage in table().storages
    assert table().methods["quarot"].formats == ("native",)


def test_the_table_survives_json():
    import json

    assert Table.from_json(json.loads(as_json(build_table()))) == build_table()


def test_every_option_of_some_owners_is_one_flag():
    for owners in ([RUN], list(METHODS), list(WRAPPERS), list(OF_REWRITES), [CHANGES]):
        names = [flag.name for flag in flags(owners)]
        assert len(names) == len(set(names))
        assert set(names) == {name for owner in owners for name in table().owners[owner]}
    of_wrappers = {flag.name for flag in flags(list(WRAPPERS))}
    assert {"correction_ridge", "ridge", "scales_ridge", "rule"} <= of_wrappers
    assert not {"inner", "target", "projection"} & of_wrappers


def test_help_of_a_flag_names_owners_and_defaults():
    of_methods = {flag.name: flag for flag in flags(list(METHODS))}
    assert of_methods["damping"].help.endswith(
        "(default: 0.01) [gptq, ldlq, pbllm, owq, leanquant: 0.1, exl3: 0.025]"
    )
    assert of_methods["exponent"].help.endswith("(default: 4.0) [leanquant]")
    grid = of_methods["grid"]  # other choices for ldlq and owq than for rtn and gptq
    assert len(grid.kinds) == 3 and (grid.parse("signed"), grid.parse("trellis")) == (
        "signed",
        "trellis",
    )
    assert of_methods["bits"].parse("3") == 3 and of_methods["bits"].parse("x") == "x"
    assert of_methods["target_rank"].parse("none") is None
