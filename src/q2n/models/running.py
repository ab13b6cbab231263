"""A model's own forward pass, which fails in its own words if its configuration cannot be."""

from collections.abc import Iterator
from contextlib import contextmanager

from q2n.errors import InputError, Q2NError, reason_of
from q2n.models.config_file import BAD_CONFIG


@contextmanager
def running(what: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Names what ran where it fails. Failures of the classes `but` are the caller's.

    Raises:
        InputError: it does.
    """
    try:
        yield
    except Q2NError:
        raise
    except but:
        raise
    except BAD_CONFIG as cause:
        raise InputError(
            f"{what} does not run: {reason_of(cause)}; config.json may belong to another model, or "
            "the memory is full"
        ) from cause
