"""All figures of a report as files, for a README or a talk: each as SVG and as PNG, on white."""

from collections.abc import Iterator
from pathlib import Path

from q2n.errors import InputError
from q2n.report.output import require_free, write
from q2n.report.sweeps.gallery import pictures
from q2n.report.sweeps.report import Report


def require_folder(folder: Path) -> None:
    """Refuse what is no folder and cannot become one.

    Raises:
        InputError: a file lies there, or the folder above is missing.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: --figures takes a folder")
    if not folder.parent.is_dir():
        raise InputError(f"{folder} cannot be made: {folder.parent} is no folder")


def write_figures(report: Report, folder: Path) -> int:
    """Two files a figure, named after plan and kind; returns the number of figures.

    Raises:
        InputError: a file of that name lies there that we did not write, or none can be written.
    """
    folder.mkdir(exist_ok=True)
    return sum(_write(folder, *each) for each in _files(report))


def _write(folder: Path, name: str, svg: bytes, png: bytes) -> int:
    for kind, data in (("svg", svg), ("png", png)):
        file = folder / f"{name}.{kind}"
        require_free(file, kind)
        write(file, data)
    return 1


def _files(report: Report) -> Iterator[tuple[str, bytes, bytes]]:
    """Names that two figures share get a number."""
    taken: dict[str, int] = {}
    for plan, rows in report.plans.items():
        for _, picture in pictures(plan, rows):
            taken[picture.name] = taken.get(picture.name, 0) + 1
            times = taken[picture.name]
            name = picture.name if times == 1 else f"{picture.name}-{times}"
            yield name, picture.svg, picture.png
