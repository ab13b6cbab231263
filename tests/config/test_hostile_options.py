"""Every option against values that nobody means: taken as its type says, or refused in one line."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from q2n.config.options import REWRITE_OWNERS, SWITCHES, table
from q2n.config.reading import read_settings
from q2n.errors import InputError

HOSTILE = [
    True, False, 0, 1, -1, -2, 2, 16, 17, 2**31, 2**63, 2**64, 10**12, 10**30, 10**400, -(10**400),
    10**5000, 0.0, -0.0, 1.0, 0.5, -1e-9, 1e-300, 1e300, math.nan, math.inf, -math.inf,
    "", " ", "3", "-1", "nan", "true", "off", "none", "a\0b", "\ud800", "x" * 10**6, "é", "a\nb",
    b"bytes", [], ["a"], [1], ["a\0"], [None], [[]], (), {}, {"a": 1}, set(), object(), int, print,
    np.int64(3), np.float32(0.5), np.float64("nan"), np.bool_(True), np.array([1]), np.array(3),
    torch.tensor(3), torch.tensor([1.0, 2.0]), Path("x"), 3 + 4j, range(3), ...,
]  # fmt: skip
OPTIONS = [(owner, name) for owner, options in table().owners.items() for name in options]


def with_owner(owner: str) -> dict:
    """Settings under which an owner takes part."""
    if owner in table().methods:
        return {"method": owner}
    rewrites = {owner: name for name, owner in REWRITE_OWNERS.items()}
    if owner in rewrites:
        return {"rewrite": rewrites[owner]}
    return {SWITCHES[owner]: True} if owner in SWITCHES else {}


@pytest.mark.parametrize(("owner", "name"), OPTIONS)
def test_a_hostile_value_is_taken_by_contract_or_refused_in_one_line(owner, name):
    option, usual = table().owners[owner][name], with_owner(owner)
    for value in HOSTILE:
        try:
            settings = read_settings({**usual, name: value})
        except InputError as refused:
            line = str(refused)
            assert "\n" not in line and len(line) < 1000, line
            continue
        stored = settings.flat()[name]
        assert option.kind.accepts(stored), (name, value, stored)
        assert type(stored) in (bool, int, float, str, tuple, type(None))
        settings.fingerprint()  # survives JSON


def test_numbers_of_other_libraries_are_those_numbers():
    settings = {"bits": np.int64(3), "damping": np.float32(0.5), "correct": np.bool_(True)}
    read = read_settings({**settings, "seed": torch.tensor(7), "output": Path("out")}).flat()
    assert [read[name] for name in ("bits", "damping", "correct", "seed", "output")] == [
        3, 0.5, True, 7, "out",
    ]  # fmt: skip
    assert type(read["bits"]) is int and type(read["damping"]) is float


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seed", -1, "seed is -1; it takes a whole number at least 0"),
        ("seed", 2**64, "seed is 18446744073709551616"),
        ("seed", 10**400, "seed is a number of many digits"),
        (
            "group_size",
            0,
            "group_size is 0; it takes a whole number at least 1 and at most 1000000",
        ),
        ("group_size", 10**30, "group_size is 1"),
        ("batch_size", 10**12, "batch_size is 1000000000000"),
        ("windows", 10**12, "windows is 1000000000000"),
        ("length", 10**30, "length is 1"),
        ("damping", math.nan, "damping is nan"),
        ("damping", 10**400, "damping is a number of many digits"),
        ("bits", 17, "bits is 17"),
        ("device", "a\0b", "device is"),
        ("method", {}, "method is {}"),
        ("nullspace", ["paper"], "nullspace is"),
        ("model", "x\ud800", "model is"),
    ],
)
def test_what_is_out_of_range_is_named(name, value, words):
    with pytest.raises(InputError) as refused:
        read_settings({name: value})
    assert words in str(refused.value)


def test_every_number_has_both_bounds():
    """A slip of the keyboard is refused, instead of filling the memory."""
    for owner, options in table().owners.items():
        for name, option in options.items():
            if option.kind.type in ("int", "float"):
                limits = option.kind.range
                assert limits is not None and limits.low > -math.inf, (owner, name)
                assert limits.high < math.inf, (owner, name)
