"""Spectra of the inputs' Gram matrices, and where the rules split them.

Figure 1 of the paper: all eigenvalues of one input, and the principal directions that each rule
keeps. Figure 4: several inputs without the five largest eigenvalues, which dwarf the others, with
the split of the ratio rule marked.
"""

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes

from q2n.report.experiment import SpectrumRecord
from q2n.report.figures.frame import frame
from q2n.report.figures.labels import End, label_ends, room_for
from q2n.report.figures.style import PAPER, SERIES, SMALL, Picture, log_scale, slug, styled

RULES = {"ratio": "ratio rule", "matrix_rank": "matrix_rank", "adam_nscl": "Adam-NSCL"}
TOP = 5
"""Eigenvalues that Figure 4 leaves out."""
INPUTS = 5
"""Lines in a figure at most."""


def spectrum_pictures(
    name: str, title: str, spectra: Sequence[SpectrumRecord]
) -> Iterator[Picture]:
    """For each kind of linear the spectrum in the middle of the model, and those of all blocks."""
    shown = [x for x in spectra if x.places[-1] >= TOP and x.values[0] > 0]
    for kind in dict.fromkeys(spectrum.kind for spectrum in shown):
        mine = sorted((x for x in shown if x.kind == kind), key=lambda x: x.block)
        yield spectrum_picture(name, title, mine[len(mine) // 2])
        yield tails_picture(name, title, mine)


@styled
def spectrum_picture(name: str, title: str, spectrum: SpectrumRecord) -> Picture:
    """Figure 1: the eigenvalues on a logarithmic scale, and the cuts."""
    figure, axes = frame(
        f"{title}, {spectrum.layer}",
        "eigenvalues of the inputs' Gram matrix, per token",
    )
    known = [(x + 1, y) for x, y in zip(spectrum.places, spectrum.values, strict=True) if y > 0]
    axes.plot(*zip(*known, strict=True), color=SERIES[0])
    axes.set_xlabel(f"eigenvalue, of {spectrum.width}")
    log_scale(axes)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.3)
    for n, (rule, kept) in enumerate(sorted(spectrum.cuts.items(), key=lambda item: item[1])):
        _draw_cut(axes, n, f"{RULES.get(rule, rule)} keeps {kept}", kept, spectrum.width)
    cuts = ", ".join(f"{RULES.get(rule, rule)} {kept}" for rule, kept in spectrum.cuts.items())
    spoken = f"Spectrum of {spectrum.layer}, {title}; principal directions kept: {cuts}"
    return Picture(slug(name, "spectrum", spectrum.layer), spoken, figure)


def _draw_cut(axes: Axes, number: int, text: str, kept: int, width: int) -> None:
    """A line from below, its name at the top, each lower than the one before."""
    height, side = 0.98 - 0.09 * number, -1 if kept > 0.6 * width else 1
    axes.axvline(kept, ymax=height, color=SERIES[1 + number % 5], lw=1)
    axes.annotate(
        text,
        (kept, height),
        (4 * side, 0),
        ("data", "axes fraction"),
        "offset points",
        ha="left" if side > 0 else "right",
        va="top",
        fontsize=SMALL,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},  # no line goes through it
    )


@styled
def tails_picture(name: str, title: str, spectra: Sequence[SpectrumRecord]) -> Picture:
    """Figure 4: spectra of one kind of input without their largest eigenvalues, block by block."""
    shown = _evenly(spectra)
    kind, names = shown[0].kind, [f"block {spectrum.block}" for spectrum in shown]
    figure, axes = frame(
        f"{title}, {kind}",
        f"eigenvalues without the top {TOP}, over the next; dot: split",
        right=room_for(names),
    )
    lines = zip(shown, names, SERIES, strict=False)
    ends = [_draw_tail(axes, spectrum, label, colour) for spectrum, label, colour in lines]
    axes.set_xlabel("eigenvalue")
    log_scale(axes, "x")
    label_ends(axes, ends)
    spoken = f"Spectra of the inputs of {kind}, {title}, without the {TOP} largest eigenvalues"
    return Picture(slug(name, "tails", kind), spoken, figure)


def _draw_tail(axes: Axes, spectrum: SpectrumRecord, name: str, colour: str) -> End:
    """A line and, where the ratio rule cuts it, a dot."""
    known = [
        (x + 1.0, y) for x, y in zip(spectrum.places, spectrum.values, strict=True) if x >= TOP
    ]
    first = known[0][1] or 1.0
    xs, ys = [x for x, _ in known], [y / first for _, y in known]
    axes.plot(xs, ys, color=colour, zorder=2)
    at = _at(xs, ys, spectrum.cuts.get("ratio"))
    if at is not None:
        axes.plot(*at, "o", color=colour, zorder=3)
    return End(*(at or (xs[-1], ys[-1])), name, colour)


def _evenly(spectra: Sequence[SpectrumRecord]) -> list[SpectrumRecord]:
    """First and last and some between."""
    if len(spectra) <= INPUTS:
        return list(spectra)
    return [spectra[round(n * (len(spectra) - 1) / (INPUTS - 1))] for n in range(INPUTS)]


def _at(xs: Sequence[float], ys: Sequence[float], kept: int | None) -> tuple[float, float] | None:
    """The value that was kept nearest to the cut."""
    if kept is None:
        return None
    return min(zip(xs, ys, strict=True), key=lambda point: abs(point[0] - kept))
