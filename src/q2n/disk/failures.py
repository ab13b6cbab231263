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
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_CODE = re.compile(r"os error (\d+)")


def reason(cause: Exception) -> str:
    """What the operating system says; safetensors wraps it into a text with the number."""
    code = _code(cause)
    return " ".join(str(cause).split()) if code is None else os.strerror(code)


def remedy(cause: Exception) -> str:
    """What to do about it."""
    return _REMEDIES.get(_code(cause) or 0, "choose another --output")


def is_of_disk(cause: BaseException) -> bool:
    """Whether a failure, or what it came from, is of a disk that is full or broken: whatever is
    tried next on it fails too."""
    from_ = cause.__cause__
    own = isinstance(cause, Exception) and _code(cause) in _OF_DISK
    return own or (from_ is not None and is_of_disk(from_))


def _code(cause: Exception) -> int | None:
    if isinstance(cause, OSError) and cause.errno is not None:
        return cause.errno
    found = _CODE.search(str(cause))
    return int(found[1]) if found else None
