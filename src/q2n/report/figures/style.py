"""One style for every figure, and a figure as SVG inside a page, as SVG alone, as PNG.

Colours are those of Okabe and Ito, told apart with every kind of colour vision. In a page a figure
has CSS variables in their place, so one drawing serves light and dark; alone it has the colours
themselves on white. Text stays text. The same figure gives the same bytes.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from html import escape
from math import log10
from os.path import commonprefix
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK, MUTED, GRID, PAPER, REFERENCE = "#1b1f24", "#5b6570", "#dfe3e8", "#fffffe", "#9aa3ad"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vPX"
VARIABLES = {
    **{INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"},
    REFERENCE: "--reference",
    **{colour: f"--series-{n}" for n, colour in enumerate(SERIES, 1)},
}
"""Colour -> CSS variable."""
FAMILY = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
SIZE, SMALL, INCH = 9.5, 8.5, 72.0
"""Points of text; points in an inch."""
LETTER = 0.58 * SMALL / INCH
"""Width of a letter of a label in inches, amply."""
CREATOR = "q2n report"
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label of a plan may hold a dollar sign
    "font.family": "DejaVu Sans",
    "font.size": SIZE,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": SMALL,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "figure.facecolor": PAPER,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.0,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
}
P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def style(salt: str = "") -> Iterator[None]:
    """Drawing and saving happen in it; `salt` keeps names within one SVG from those of others."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt or CREATOR}):
        yield


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """A function that draws in this style."""

    @wraps(draw)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> R:
        with style():
            return draw(*args, **kwargs)

    return drawing


@dataclass(frozen=True)
class Picture:
    """A drawn figure."""

    name: str
    """Of its file, without ending."""
    title: str
    """For those who do not see it, in one line."""
    figure: Figure

    @property
    def svg(self) -> bytes:
        """A file that stands alone, on white."""
        return self._saved("svg", {"Date": None, "Creator": CREATOR})

    @property
    def png(self) -> bytes:
        """200 dots an inch, on white."""
        return self._saved("png", {"Software": CREATOR}, dpi=200)

    @property
    def inline(self) -> str:
        """For a page: colours as variables, the page's font, no names but those it refers to."""
        text = self.svg.decode()
        text = text[text.index("<svg") :]
        text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.S)
        text = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.S)
        text = re.sub(r'<g id="[^"]*"', "<g", text)
        text = text.replace(f" font-family: {FAMILY};", "")
        for colour, variable in VARIABLES.items():
            text = text.replace(colour, f"var({variable})")
        width, height = self.figure.get_size_inches() * INCH
        head = (
            f'<svg viewBox="0 0 {width:g} {height:g}" style="--width: {width:g}" role="img" '
            f'xmlns:xlink="http://www.w3.org/1999/xlink"><title>{escape(self.title)}</title>'
        )
        return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)

    def save(self, file: Path) -> None:
        """In the format that its ending says.

        Raises:
            OSError, ValueError, RuntimeError: it cannot be written.
        """
        if file.suffix.lower() == ".svg":
            file.write_bytes(self.svg)
        else:
            with style(self.name):
                self.figure.savefig(file, dpi=200)

    def _saved(self, kind: str, metadata: dict[str, str | None], **how: Any) -> bytes:
        stream = io.BytesIO()
        with style(self.name):
            self.figure.savefig(stream, format=kind, metadata=metadata, **how)
        return stream.getvalue() if kind == "png" else _with_fonts(stream.getvalue())


def slug(*parts: str) -> str:
    """A name for a file."""
    return "-".join("".join(c if c.isalnum() else "-" for c in x.lower()) for x in parts if x)


def shortened(text: str, most: int) -> str:
    """A long name by its beginning and end."""
    return text if len(text) <= most else f"{text[: most - most // 3 - 1]}…{text[-(most // 3) :]}"


def told_apart(names: Iterable[str], most: int) -> dict[str, str]:
    """Names shortened so that no two are the same: where beginning and end do not tell them apart,
    by what comes after that which they begin with together."""
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        alike.setdefault(shortened(name, most), []).append(name)
    found = {}
    for short, group in alike.items():
        if len(group) == 1:
            found[group[0]] = short
            continue
        start = max(0, len(commonprefix(group)) - 4)  # a few letters that they share lead over
        rest = told_apart([name[start:] for name in group], most - 1)
        found |= {name: f"…{rest[name[start:]]}" for name in group}
    return found


def _with_fonts(svg: bytes) -> bytes:
    """Drawn with the widths of DejaVu Sans, which is wider than what readers have."""
    return re.sub(rb"font-family: [^;\"<]*", f"font-family: {FAMILY}".encode(), svg)


def log_scale(axes: Axes, which: str = "y") -> None:
    """With plain numbers at the ticks: 0.2, 0.5, 1."""
    axes.set(**{f"{which}scale": "log"})
    axes.autoscale_view()
    low, high = getattr(axes, f"get_{which}lim")()
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(LogLocator(subs=_steps(log10(high) - log10(low)), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _steps(decades: float) -> tuple[float, ...]:
    """Ticks within a factor of ten, so that there are some and not too many."""
    if decades < 0.9:
        return (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    return (1.0, 2.0, 5.0) if decades < 3 else (1.0,)
