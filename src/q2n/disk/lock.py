"""One output, one run: a lock beside the output for as long as the run lives.

It is the operating system's lock on an open file (`filelock`: flock or its like), so it ends with
the process, however that ends. The file says who holds it; it is removed at the end, and one that
a killed process left is taken over.

On network file systems a lock holds as far as the server keeps it: NFS does between hosts from
Linux 2.6.12 on, some others only between the processes of one host.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from q2n.disk.failures import reason, remedy
from q2n.errors import InputError

PATIENCE = 0.5
"""Seconds in which a run that is just ending may end."""


def lock_file(output: Path) -> Path:
    """The file that is locked while a run writes `output`."""
    return output.with_name(f".{output.name}.q2n-lock")


@contextmanager
def run_lock(output: Path) -> Iterator[None]:
    """Own `output` alone. The folder that it is to lie in is made, and removed again if nothing
    comes of it.

    Raises:
        InputError: another run owns it, or nothing can be written there.
    """
    file, made = lock_file(output), _missing_parents(output)
    lock = FileLock(file, timeout=PATIENCE)
    try:
        _acquire(lock, file)
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                file.unlink(missing_ok=True)
            lock.release()
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _acquire(lock: FileLock, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        holder = _holder(file)
        lock.acquire()
        if not isinstance(lock, SoftFileLock):  # where there are no real locks: writes its own
            file.write_text(json.dumps(_this_process()))
    except Timeout as cause:
        raise InputError(
            f"another run writes the same --output ({_holder(file) or holder or 'unknown'}); "
            "wait for it, stop it, or choose another --output"
        ) from cause
    except (OSError, NotImplementedError) as cause:
        raise InputError(
            f"{file.parent} cannot be written to ({reason(cause)}); {remedy(cause)}"
        ) from cause


def _missing_parents(output: Path) -> list[Path]:
    """Folders on the way to `output` that are not there, the innermost first."""
    return [folder for folder in output.parents if not folder.exists()]


def _this_process() -> dict[str, object]:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _holder(file: Path) -> str | None:
    """Who wrote the lock file, in words; None if it does not say."""
    try:
        values = json.loads(file.read_text())
        return f"process {values['pid']} on {values['host']}, since {values['since']}"
    except (OSError, ValueError, LookupError, TypeError):
        return None
