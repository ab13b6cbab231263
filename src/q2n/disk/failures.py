"""Why something cannot be written, in the words of the operating system, and what helps."""

import errno
import os
import re

_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there",
    errno.EACCES: "choose an --output that you may write to",
    errno.EPERM: "choose an --output that you may write to",
    errno.EROFS: "choose an --output that you may write to",
    errno.ENOENT: "it was moved or deleted meanwhile: put it back",
    errno.ENAMETOOLONG: "choose a shorter --output",
}
_CODE = re.compile(r"os error (\d+)")


def reason(cause: Exception) -> str:
    """What the operating system says; safetensors wraps it into a text with the number."""
    code = _code(cause)
    return " ".join(str(cause).split()) if code is None else os.strerror(code)


def remedy(cause: Exception) -> str:
    """What to do about it."""
    return _REMEDIES.get(_code(cause) or 0, "choose another --output")


def _code(cause: Exception) -> int | None:
    if isinstance(cause, OSError) and cause.errno is not None:
        return cause.errno
    found = _CODE.search(str(cause))
    return int(found[1]) if found else None
