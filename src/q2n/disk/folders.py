"""Folders that a run fills and removes again, without touching what others put there.

A working folder carries a marker. One without it is somebody else's: it is refused, never filled or
emptied. Of one that is ours only files under names that we write are removed, and the folder when
nothing else is in it.
"""

import os
from collections.abc import Callable
from pathlib import Path

from q2n.disk.failures import reason, remedy
from q2n.errors import InputError

MARKER = "q2n-works-here.txt"
_TEXT = "q2n works in this folder and removes it when the checkpoint is complete.\n"

Known = Callable[[str], object]
"""Whether a file is one that we write, by its path within the folder ("activations/x.tmp")."""


def partial_folder(output: Path) -> Path:
    """Where a run that is to write `output` works."""
    return output.with_name(output.name + ".partial")


def is_working_folder(folder: Path) -> bool:
    """Whether it is there and carries the marker."""
    return not folder.is_symlink() and (folder / MARKER).is_file()


def require_ours(folder: Path) -> None:
    """Refuse a working folder of somebody else. An empty one may be taken.

    Raises:
        InputError: a file, a link or a folder without the marker has this name.
    """
    if not os.path.lexists(folder) or is_working_folder(folder):
        return
    if folder.is_symlink() or not _is_empty(folder):
        raise InputError(
            f"{folder} is in the way: it was not made by this version of q2n, which works under "
            "that name; move it away or choose another --output"
        )


def make_working_folder(folder: Path) -> None:
    """Make a folder that is ours, unless it is there.

    Raises:
        InputError: it is somebody else's, or cannot be made.
    """
    require_ours(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not is_working_folder(folder):
            with (folder / MARKER).open("x") as stream:
                stream.write(_TEXT)
    except OSError as cause:
        raise InputError(f"{folder} cannot be made ({reason(cause)}); {remedy(cause)}") from cause


def leave_working_folder(folder: Path, known: Known = lambda path: False) -> list[str]:
    """Remove what is known and, if that is all, the folder. Returns what remains. Somebody else's
    folder stays as it is, unless it is empty."""
    if not is_working_folder(folder):
        _removed(folder.rmdir)  # it is empty if we were killed between the marker's end and its own
        return []
    remaining = remove_known(folder, lambda path: path != MARKER and known(path))
    return remaining if remaining != [MARKER] else remove_known(folder, lambda path: True)


def remove_known(folder: Path, known: Known) -> list[str]:
    """Remove the known files of a folder, and every folder that is empty then, itself included;
    links are not followed. Returns the paths within it that remain."""
    if folder.is_symlink():
        return ["."]
    remaining: list[str] = []
    for place, folders, names in os.walk(folder, topdown=False):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in (*names, *links):
            file = Path(place, name)
            path = file.relative_to(folder).as_posix()
            if not (known(path) and _removed(file.unlink)):
                remaining.append(path)
        _removed(Path(place).rmdir)
    return sorted(remaining)


def remove_empty(folder: Path, outermost: Path) -> None:
    """Remove a folder if it is empty, then those around it that are empty then, up to `outermost`:
    what other processes have made beside it stays, empty or not."""
    for place in (folder, *folder.parents):
        if not (place.is_relative_to(outermost) and _removed(place.rmdir)):
            return


def fresh_folder(folder: Path, known: Known) -> None:
    """Make an empty folder; known files that an earlier run left there are removed.

    Raises:
        InputError: something else is there.
        OSError: it cannot be made.
    """
    remove_known(folder, known)
    try:
        folder.mkdir(parents=True)
    except FileExistsError as cause:
        raise InputError(
            f"{folder} holds what q2n did not write, and q2n writes there; move it away"
        ) from cause


def _is_empty(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except OSError:  # no folder, or one that is closed to us
        return False


def _removed(remove: Callable[[], None]) -> bool:
    try:
        remove()
    except OSError:
        return False
    return True
