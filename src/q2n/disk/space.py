"""Whether a disk has room."""

import shutil
from pathlib import Path

from q2n.errors import InputError


def require_space(folder: Path, needed: float, what: str, option: str = "--output") -> None:
    """Refuse a disk that is too small.

    Args:
        folder: on that disk.
        needed: bytes.
        what: needs them, for the message ("the checkpoint needs about").
        option: names the place.

    Raises:
        InputError: with both numbers.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{what} {needed / 1e9:.2f} GB, and {folder.absolute()} has {free / 1e9:.2f} GB free; "
            f"free space there or choose another {option}"
        )
