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


_LONGEST_REASON = 300
"""Characters."""


def reason_of(cause: BaseException) -> str:
    """What another library says of a failure, for a message of one line: its kind and the
    beginning of its text, which may go on for pages."""
    line = " ".join(str(cause).split())
    line = line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}.."
    return f"{type(cause).__name__}: {line}" if line else type(cause).__name__
