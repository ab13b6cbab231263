"""Which values an option takes, from the type of a field."""

import json
import math
from dataclasses import dataclass
from typing import Literal

import pytest

from q2n.errors import InputError
from q2n.option_types import (
    Bits,
    Count,
    GroupSize,
    NonNegative,
    Patterns,
    Positive,
    Range,
    ShareAboveZero,
    ShareInside,
    ValueKind,
    check_fields,
    field_kinds,
)

NAN, INF = math.nan, math.inf
CASES = {
    "bits": (Bits, [2, 8], [5, "4", True, None, 4.0]),
    "group size": (GroupSize, [1, -1, 64], [0, -2, 1.5, "64", True]),
    "count": (Count, [1, 10**6], [0, 1.0, INF, 10**6 + 1, 10**30]),
    "not negative": (NonNegative, [0, 0.0, 3, 2.5], [-1e-9, NAN, INF, "1", True]),
    "positive": (Positive, [1e-9, 7], [0, 0.0, -1, NAN]),
    "share above 0": (ShareAboveZero, [0.1, 1, 1.0], [0, 1.01]),
    "share inside": (ShareInside, [0.1, 0.9], [0, 1, 1.0]),
    "optional": (Positive | None, [None, 2.0], [0, "none"]),
    "flag": (bool, [True, False], [1, 0, "true", None]),
    "text": (str, ["", "x"], [1, None]),
    "number": (float, [1, -2.5], [NAN, INF, "1"]),
    "texts": (Patterns, [(), ("a", "b")], [["a"], "a", (1,)]),
    "choice": (Literal["a", "b"], ["a", "b"], ["c", None, True]),
}


@pytest.mark.parametrize(("hint", "taken", "refused"), CASES.values(), ids=CASES)
def test_a_kind_takes_what_its_type_says(hint, taken, refused):
    kind = ValueKind.of(hint)
    for again in (kind, ValueKind.from_json(json.loads(json.dumps(kind.to_json())))):
        assert again == kind
        assert [value for value in taken if not again.accepts(value)] == []
        assert [value for value in refused if again.accepts(value)] == []


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (Bits, "3", 3),
        (Bits, "5", 5),  # not one of them: refused under its own value
        (Bits, "x", "x"),
        (Count, "64", 64),
        (Count, "6.4", "6.4"),
        (NonNegative, "1e-3", 0.001),
        (NonNegative, "nan", "nan"),
        (Positive | None, "none", None),
        (bool, "False", False),
        (bool, "yes", "yes"),
        (Literal["off", "on"], "on", "on"),
    ],
)
def test_word_of_the_command_line_becomes_a_value(hint, text, value):
    parsed = ValueKind.of(hint).parse(text)
    if text == "nan":
        assert math.isnan(parsed)
    else:
        assert parsed == value and type(parsed) is type(value)


def test_ranges_in_words():
    words = {
        Range(low=0): "at least 0",
        Range(low=0, open_low=True): "above 0",
        Range(low=0, high=1, open_low=True, open_high=True): "above 0 and below 1",
        Range(low=0, high=1): "at least 0 and at most 1",
        Range(low=1, also=-1): "at least 1, or -1",
    }
    assert {interval: str(interval) for interval in words} == words


@dataclass(frozen=True, kw_only=True)
class Options:
    inner: object = None
    size: GroupSize = -1
    share: ShareInside | None = None


def test_a_dataclass_refuses_naming_field_and_value():
    check_fields(Options())
    assert list(field_kinds(Options)) == ["size", "share"]  # not what a wrapper goes around
    for options, message in (
        (
            Options(size=0),
            "size is 0; it takes a whole number at least 1 and at most 1000000, or -1",
        ),
        (Options(share=1.0), "share is 1.0; it takes a finite number above 0 and below 1"),
    ):
        with pytest.raises(InputError) as failure:
            check_fields(options)
        assert str(failure.value) == message
