"""The folder that a run writes: everything about its name that can be refused before any work."""

import os
from pathlib import Path
from unicodedata import category

from q2n.config.settings import RunSettings
from q2n.disk.folders import is_working_folder, partial_folder
from q2n.errors import InputError
from q2n.report.record import RECORD_FILE


def output_folder(run: RunSettings, *, resume: bool = False) -> Path:
    """The folder to write. It must not be there yet, or with `resume` be a finished checkpoint.

    Raises:
        InputError: it is there, its name cannot be one, it lies in the model's folder, or no
            model or output was set.
    """
    for needed in ("model", "output"):
        if not getattr(run, needed):
            raise InputError(f"no {needed} set; usage: q2n quantize MODEL --output DIR [options]")
    return new_folder(run.output, run.model, finished=RECORD_FILE if resume else None)


def new_folder(output: str, model: str, *, finished: str | None = None) -> Path:
    """The folder of that name, which is not there yet, or has a file `finished`; not within the
    folder `model`.

    Raises:
        InputError: as `output_folder`.
    """
    folder = named(output)
    if os.path.lexists(folder) and not (finished and (folder / finished).is_file()):
        raise InputError(
            f"output {folder} exists; choose another folder or delete it{_left(folder)}"
        )
    for place in folder.parents:
        if place.exists():
            if not place.is_dir():
                raise InputError(f"output {folder} cannot be made: {place} is not a folder")
            break
    within = Path(os.path.expanduser(model)).resolve()
    if within.is_dir() and folder.resolve().is_relative_to(within):
        raise InputError(f"output {folder} lies in the model's folder; choose one outside of it")
    return folder


def named(output: str) -> Path:
    """The path of that name.

    Raises:
        InputError: no folder can be called so.
    """
    if any(category(letter) in ("Cc", "Cs") for letter in output):  # control, not UTF-8
        raise InputError(f"output {output!r} has characters that do not belong in a name")
    folder = Path(os.path.expanduser(output))
    if ".." in folder.parts:  # what it means depends on links on the way
        folder = folder.resolve()
    try:
        os.lstat(folder.with_name(f".{folder.name}.q2n-lock"))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as cause:
        raise InputError(f"output {output!r} cannot be a folder: {cause}") from cause
    return folder


def _left(folder: Path) -> str:
    """What a run that was killed at its very end has left beside its output."""
    partial = partial_folder(folder)
    if not (folder / RECORD_FILE).is_file() or not is_working_folder(partial):
        return ""
    return f" ({partial} is left of the run that wrote it: the same call with --resume removes it)"
