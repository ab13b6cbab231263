"""Named failures. Each message says what was wrong, where, and what to do about it.

`exit_code` is what the command line returns: 2 for input that cannot be used
(a bad option, a broken checkpoint, activations that overflow), 1 for the rest.
"""


class Q2NError(Exception):
    """Base of every failure that q2n raises on purpose."""

    exit_code = 1


class InputError(Q2NError, ValueError):
    """The user's input cannot be used: an option, a path, a text, a checkpoint."""

    exit_code = 2


class NumericalError(Q2NError, ArithmeticError):
    """The numbers cannot be used: NaN or Inf, or a Hessian no damping repairs."""

    exit_code = 2


class ResumeError(InputError):
    """A partial run belongs to another model, text, configuration or version."""


class RankError(Q2NError):
    """Another process of the same run has ended: this one cannot go on."""


_BEGINNING, _END = 240, 120
"""Characters of a reason that are kept."""


def reason_of(cause: BaseException) -> str:
    """What another library says of a failure, for a message of one line: its kind, beginning and
    end of its text, which may go on for pages."""
    line = " ".join(str(cause).split())
    if len(line) > _BEGINNING + _END:
        line = f"{line[:_BEGINNING]} .. {line[-_END:]}"
    return f"{type(cause).__name__}: {line}" if line else type(cause).__name__
