"""The figures of a plan, in the order of their importance, each drawn when it is asked for.

A page shows as many as are drawn in a few seconds; `--figures` writes all.
"""

from collections.abc import Iterable, Iterator, Sequence

from q2n.report.figures.layers import layer_pictures
from q2n.report.figures.spectra import spectrum_pictures
from q2n.report.figures.style import Picture, slug
from q2n.report.sweeps.bar_figures import ACCURACY, bar_pictures, on_text
from q2n.report.sweeps.naming import varying_axes
from q2n.report.sweeps.quality_figures import COSTS, quality_pictures
from q2n.report.sweeps.rows import Row

Shown = tuple[str, Picture]
"""Kind of figure, and one of them."""
KINDS = {
    "bits": (
        "Quality against bits per weight",
        "A line joins rows that differ in their size alone; error bars are of text and seeds "
        "together.",
    ),
    "bytes": (
        "Quality against bytes on disk",
        "All tensors of the checkpoint, embeddings included.",
    ),
    "time": ("Quality against time", "Seconds compare only on one machine."),
    "gain": (
        "What the step gains",
        "Beside a bar: the difference from the grey one on the same windows, and its error. Light: "
        "within twice that error.",
    ),
    "spectra": (
        "Spectra",
        "Eigenvalues of the inputs' Gram matrix, and the principal directions that each rule "
        "keeps; what is right of a cut is its null space.",
    ),
    "layers": ("Layers", "One line a kind of linear."),
}
"""Kind -> title and what a reader must know, in the order of a page."""


def pictures(plan: str, rows: Sequence[Row]) -> Iterator[Shown]:
    """All figures of a plan."""
    bits, size, time = COSTS
    texts = list(dict.fromkeys(text for row in rows for text in row.texts))
    for text in texts[:1]:
        yield from _of("bits", quality_pictures(plan, rows, bits, text))
        yield from _of("gain", bar_pictures(plan, rows, on_text(text)))
    yield from _of("gain", bar_pictures(plan, rows, ACCURACY))
    yield from _of("spectra", _spectra(plan, rows))
    for text in texts[:1]:
        yield from _of("bytes", quality_pictures(plan, rows, size, text))
        yield from _of("time", quality_pictures(plan, rows, time, text))
    for text in texts[1:]:
        yield from _of("bits", quality_pictures(plan, rows, bits, text))
        yield from _of("gain", bar_pictures(plan, rows, on_text(text)))
    yield from _of("layers", _layers(plan, rows))
    for text in texts[1:]:
        yield from _of("bytes", quality_pictures(plan, rows, size, text))


def _of(kind: str, found: Iterable[Picture]) -> Iterator[Shown]:
    return ((kind, picture) for picture in found)


def _spectra(plan: str, rows: Sequence[Row]) -> Iterator[Picture]:
    """Of every row whose cells hold some; seeds show the same, so the first stands for all."""
    for row, name in _named(rows):
        if row.first.spectra:
            yield from spectrum_pictures(slug(plan, name), name, row.first.spectra)


def _layers(plan: str, rows: Sequence[Row]) -> Iterator[Picture]:
    """Rows with a null-space step first."""
    found = [(row, name) for row, name in _named(rows) if row.first.layers]
    found.sort(key=lambda each: not any(kind.alpha for kind in each[0].first.layers.values()))
    for row, name in found:
        yield from layer_pictures(slug(plan, "layers", name), name, row.first.layers)


def _named(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """With the labels in which they differ; an original by its model alone."""
    shown = varying_axes(rows)
    return [(row, ", ".join(str(row.labels[x]) for x in shown if x in row.labels)) for row in rows]
