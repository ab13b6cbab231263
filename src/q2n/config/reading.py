"""From flat settings to `Settings`: aliases, presets, owners, and everything that can be refused
without loading a model.

The order of precedence: what was set; the quality; the preset of the method; the runtime; the
format; the defaults.
"""

from collections.abc import Mapping, Set
from difflib import get_close_matches
from typing import Any, NamedTuple

from q2n.block_types import BLOCK_TYPES
from q2n.config.block_grids import check_outside, implied
from q2n.config.options import CHANGES, REWRITE_OWNERS, RUN, SWITCHES, defaults, table
from q2n.config.presets import (
    ALIASES,
    ANY_METHOD,
    FORMAT_PRESETS,
    METHOD_PRESETS,
    QUALITIES,
    RELEASED_NULLSPACE,
    WHEN_ALONE,
)
from q2n.config.runtimes import runtime_settings
from q2n.config.settings import RunSettings, Settings
from q2n.errors import InputError
from q2n.option_types import plain, require, shown


def read_settings(settings: Mapping[str, Any]) -> Settings:
    """Read and check flat settings; a None means the default, also where a preset says something
    else of an option that may be None.

    Raises:
        InputError: an unknown method, a setting that nobody has or that the method lacks, a value
            that it does not take.
    """
    given = _given(settings)
    presets = _presets(given, _taken_away(settings))
    expanded = {**presets, **given}
    run = _options_of(RUN, expanded)
    base = _base(run["method"])
    owners = (base, *_rewrites(run), *_wrappers(run), CHANGES)
    options = {owner: _options_of(owner, expanded) for owner in owners}
    check_outside(run)
    taken = {**run, **{name: value for own in options.values() for name, value in own.items()}}
    _refuse_idle(given, presets, taken)
    _refuse_two_widths(given)
    _refuse_unknown(given.keys() - taken.keys(), base)
    return Settings(run=RunSettings(**run), method=base, options=options)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under their own names, without those that were not set."""
    values: dict[str, Any] = {}
    set_as: dict[str, str] = {}
    for key, value in settings.items():
        name = ALIASES.get(key, key)
        if value is None:
            continue
        if name in values:
            raise InputError(f"{set_as[name]} and {key} are the same setting: give one of them")
        set_as[name] = key
        values[name] = _word(name, _plain_value(name, value))
    return values


def _taken_away(settings: Mapping[str, Any]) -> set[str]:
    """Options that were set to None, and take it: what no preset shall set."""
    names = {ALIASES.get(key, key) for key, value in settings.items() if value is None}
    owned = [own[name] for own in table().owners.values() for name in names if name in own]
    return {option.name for option in owned if option.kind.optional}


def _plain_value(name: str, value: Any) -> Any:
    """The value of a setting without the types of other libraries."""
    value = plain(value)
    if not isinstance(value, bool | int | float | str | tuple):
        raise InputError(
            f"{name} is {shown(value)}; a setting is a text, a number, true or false, or a list of "
            "texts"
        )
    return value


def _word(name: str, value: Any) -> Any:
    """The word that a bare flag or a bool of Python stands for."""
    if name in WHEN_ALONE:
        alone, off = WHEN_ALONE[name]
        return {True: alone, False: off}.get(value, value) if isinstance(value, bool) else value
    return "off" if name in ("refit", "rewrite") and value is False else value


def _presets(given: Mapping[str, Any], taken_away: Set[str]) -> dict[str, Any]:
    """What presets stand for beside what was set, without options `taken_away`."""
    options = table().owners[RUN]
    method = given.get("method", options["method"].default)
    if not isinstance(method, str) or method not in table().methods:
        raise InputError(
            f"unknown method {shown(method)}; there are: {', '.join(table().methods)}"
            + hint(shown(method), table().methods)
        )
    for name in ("quality", "nullspace", "runtime"):  # the other presets
        require(name, given.get(name, options[name].default), options[name].kind)
    below = {
        **runtime_settings(given.get("runtime")),
        **METHOD_PRESETS.get(method, {}),
        **_quality(given.get("quality"), method),
    }
    below = {name: value for name, value in below.items() if name not in taken_away}
    expanded = {**below, **given, "method": method}
    under = {
        **FORMAT_PRESETS.get(expanded.get("format", ""), {}),
        **_nullspace(expanded.get("nullspace"), method),
        **implied(expanded, table().owners[_base(method)]),
    }
    return {**under, **below, "method": method}


def _base(method: str) -> str:
    """The method that a preset of one is made of; any other name is its own."""
    return METHOD_PRESETS.get(method, {}).get("method", method)


def _quality(quality: str | None, method: str) -> Mapping[str, Any]:
    """What a quality stands for; a method without an entry gets what any method can take."""
    if quality is None:
        return {}
    return QUALITIES[quality].get(method, ANY_METHOD[quality])


def _nullspace(name: Any, method: str) -> Mapping[str, Any]:
    """What `--nullspace NAME` stands for."""
    if name != "released":
        return {}
    if method not in RELEASED_NULLSPACE:
        raise InputError(
            f"--nullspace released does what Q2N's authors' code does, and that does nothing for "
            f"{method}; it has a step for {', '.join(RELEASED_NULLSPACE)}; use --nullspace paper"
        )
    return RELEASED_NULLSPACE[method]


def _rewrites(run: Mapping[str, Any]) -> list[str]:
    """The owner of the options of the rewrite, if there is one."""
    return [owner for name, owner in REWRITE_OWNERS.items() if run["rewrite"] == name]


def _wrappers(run: Mapping[str, Any]) -> list[str]:
    """Those that take part."""
    return [owner for owner, switch in SWITCHES.items() if run[switch] not in (False, "off")]


def _options_of(owner: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """All options of an owner: those of the values that belong to it, checked, and its defaults.
    Whole numbers become floats where it takes such."""
    options = table().owners[owner]
    own = {name: values.get(name, option.default) for name, option in options.items()}
    for name, value in own.items():
        if name not in values:
            continue
        require(name, value, options[name].kind)
        if options[name].kind.type == "float" and value is not None:
            own[name] = float(value)
    return own


class _Needs(NamedTuple):
    """What a setting does nothing without."""

    off: dict[str, tuple[Any, ...]]
    """Other settings, each with its values for off; one that is on suffices."""
    flag: str
    """Turns one of them on."""


_CROSS = _Needs({"correct": (False,), "output_scales": ("off",)}, "--correct or --output-scales")
_OWQ_SHARES = _Needs({"target_bits": (None,)}, "--target-bits")
IDLE_WITHOUT: dict[str, _Needs] = {
    **dict.fromkeys(("kv_group_size", "kv_clip_ratio"), _Needs({"kv_bits": (16,)}, "--kv-bits")),
    **dict.fromkeys(
        ("activation_symmetric", "activation_group_size", "activation_clip_ratio"),
        _Needs({"activation_bits": (16,)}, "--activation-bits"),
    ),
    **dict.fromkeys(("adam_steps", "adam_rate"), _Needs({"solver": ("closed",)}, "--solver adam")),
    **dict.fromkeys(
        ("threshold", "index"), _Needs({"rule": ("matrix_rank", "adam_nscl")}, "--rule ratio")
    ),
    "scales_threshold": _Needs(
        {"scales_directions": ("all",)}, "--scales-directions principal or spectral"
    ),
    **dict.fromkeys(
        ("rotate_steps", "rotate_windows", "rotate_rate", "rotate_loss", "rotate_weight_bits"),
        _Needs({"rotate": ("none", "hadamard", "random")}, "--rotate learned"),
    ),
    "rotate_online": _Needs({"rotate": ("none",)}, "--rotate"),
    "refit_steps": _Needs({"refit": ("off",)}, "--refit"),
    "incoherence_around": _Needs({"incoherence": ("off",)}, "--incoherence"),
    **dict.fromkeys(("ppl_windows", "kl"), _Needs({"ppl": (None,)}, "--ppl")),
    "activations_limit": _Needs({"activations": ("disk",)}, "--activations device or cpu"),
    **dict.fromkeys(("stream_share", "cross_tokens"), _CROSS),
    "gradient_tokens": _Needs({"output_feedback": (False,)}, "--output-feedback"),
    **dict.fromkeys(("split", "layers_per_block", "narrow_layers", "narrow_ratio"), _OWQ_SHARES),
    "ragged_groups": _Needs({"group_size": (-1,)}, "--group-size"),
    "clip": _Needs({"grid": tuple(BLOCK_TYPES)}, "--grid uniform"),
}
"""By the name of the setting."""


def _refuse_idle(
    given: Mapping[str, Any], presets: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Refuse a setting that would do nothing because what it belongs to is off. Its default and
    what a preset says, as in a printed configuration, are no such settings.

    Args:
        settings: all options of the run and of what takes part.
    """
    for name, needs in IDLE_WITHOUT.items():
        owner = next(options for options in table().owners.values() if name in options)
        usual = (owner[name].default, presets.get(name))
        known = {other: off for other, off in needs.off.items() if other in settings}
        idle = known and all(settings[other] in off for other, off in known.items())
        if idle and name in given and given[name] not in usual:
            raise InputError(
                f"option {name!r} does nothing without {needs.flag}: add it, or leave {name!r} out"
            )


def _refuse_two_widths(given: Mapping[str, Any]) -> None:
    """Refuse bits for all layers beside bits for each, and two ways to find these."""
    ways = [name for name in ("allocate", "allocation") if given.get(name) is not None]
    both = [*ways, *(["bits"] if ways and "bits" in given else [])]
    if len(both) > 1:
        raise InputError(f"{both[0]} and {both[1]} both say how many bits: give one of them")


def _refuse_unknown(names: set[str], method: str) -> None:
    """Refuse a setting that nobody in this configuration has."""
    if not names:
        return
    name = min(names)
    flags = {owner: f"--{switch.replace('_', '-')}" for owner, switch in SWITCHES.items()}
    flags |= {owner: f"--rewrite {rewrite}" for rewrite, owner in REWRITE_OWNERS.items()}
    for owner, flag in flags.items():
        if name in table().owners[owner]:
            raise InputError(
                f"option {name!r} belongs to {flag}, which is off: add it, or leave {name!r} out"
            )
    own = table().owners[method]
    others = [owner for owner in table().owners_of(name) if owner in table().methods]
    who = f"; {', '.join(others)} have it" if others else hint(name, [*own, *table().owners[RUN]])
    raise InputError(f"method {method} has no option {shown(name)}{who}; it has: {', '.join(own)}")


def hint(word: str, words: Any) -> str:
    """The nearest of the words, as the end of a message; empty where none is near."""
    close = get_close_matches(word[:100], list(words), 1)
    return f". Did you mean {close[0]!r}?" if close else ""


ALWAYS_SHOWN = ("method", "bits", "windows", "length", "seed", "format")


def not_usual(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of recorded settings those that say what a run was: the first ones, and all that are not as
    by default."""
    owners, own = table().owners, _base(settings.get("method", ""))
    usual = defaults([*owners, *([own] if own in owners else [])])  # the method's own ones win
    return {
        name: value
        for name, value in settings.items()
        if name in ALWAYS_SHOWN or value != usual.get(name)
    }
