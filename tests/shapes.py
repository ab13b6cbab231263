"""The type checker that the import hook in conftest.py puts on every function of q2n."""

from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from beartype import BeartypeConf, FrozenDict, beartype

# The hook decorates methods one by one, where beartype cannot know what `Self` is.
_CONF = BeartypeConf(hint_overrides=FrozenDict({Self: object}))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its arguments and result checked against their annotations. Options of a
    dataclass are left out: it refuses their values itself, in words for users."""
    if function.__name__ == "__init__":
        hints = function.__annotations__
        function.__annotations__ = {
            name: object if _is_option(hint) else hint for name, hint in hints.items()
        }
    return beartype(conf=_CONF)(function)


def _is_option(hint: Any) -> bool:
    """Whether a type says by itself which values it takes: a choice, or a number in a range."""
    if get_origin(hint) in (Union, UnionType):
        return any(_is_option(part) for part in get_args(hint))
    return get_origin(hint) in (Literal, Annotated)
