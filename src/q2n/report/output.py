"""Files that a report writes: whole or not at all, and never over a file of somebody else.

Every kind of file of ours carries a mark by which it is known again.
"""

import os
import re
from pathlib import Path

from q2n.disk.failures import reason, remedy
from q2n.disk.whole import write_whole
from q2n.errors import InputError

MARKS = {
    "markdown": "<!-- made by q2n report -->",
    "html": '<meta name="generator" content="q2n report">',
}
"""What is written into a file of a kind that has room for it."""
_BEGINNINGS = {
    "markdown": re.escape(MARKS["markdown"]),
    "csv": r"table,[^\n]*,refused\n",
    "html": f".*?{re.escape(MARKS['html'])}",
    "svg": r".*?<dc:title>q2n report</dc:title>",
    "png": r"\x89PNG.*?Software\0q2n report",
    "jsonl": r'\{"layout": \d+, "cell": ',
}
"""Kind of file -> how ours begin."""


def require_free(file: Path, kind: str) -> None:
    """Refuse a file that could not be written, before there is anything to write.

    Raises:
        InputError: another file lies there, or no file can be made there.
    """
    require_place(file)
    if file.is_dir():
        raise InputError(f"{file} is a folder: give the name of a file")
    if file.exists() and not _is_ours(file, _BEGINNINGS[kind]):
        raise InputError(
            f"{file} is there and is no {kind} file that q2n made: choose another name, or "
            "delete it"
        )


def require_place(file: Path) -> None:
    """Refuse a file in a folder that is not there or cannot be written into.

    Raises:
        InputError: it is such a one.
    """
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"{file} cannot be written: {file.parent} is no folder to write into")


def _is_ours(file: Path, begins: str) -> bool:
    with file.open("rb") as stream:
        beginning = stream.read(2**16)
    return not beginning or re.match(begins.encode(), beginning, re.DOTALL) is not None


def write(file: Path, data: bytes) -> None:
    """All of it or nothing.

    Raises:
        InputError: it cannot be written.
    """
    try:
        write_whole(file, data)
    except OSError as cause:
        raise InputError(f"{file} cannot be written ({reason(cause)}): {remedy(cause)}") from cause
