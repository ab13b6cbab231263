"""The type checker that the import hook in conftest.py puts on every function of q2n."""

from collections.abc import Callable
from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

# The hook decorates methods one by one, where beartype cannot know what `Self` is.
_CONF = BeartypeConf(hint_overrides=FrozenDict({Self: object}))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its arguments and result checked against their annotations."""
    return beartype(conf=_CONF)(function)
