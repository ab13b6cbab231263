"""A file that is whole or not there, whatever happens while it is written."""

import os
from pathlib import Path


def write_whole(file: Path, data: bytes) -> None:
    """Write under another name, flush to the disk, rename over `file`.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    fresh = file.with_suffix(f"{file.suffix}.{os.getpid()}.tmp")
    try:
        with fresh.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(file)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
