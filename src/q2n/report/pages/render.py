"""A page as one HTML file: it opens without a network, without a script, on a phone, on paper.

base.html.jinja is its frame, table.html.jinja shows a table, page.css has its looks. Everything
stands in the file: figures are SVG, their colours variables that the style sheet sets for light and
dark.
"""

from collections.abc import Iterable
from importlib.resources import files
from itertools import count, groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from q2n.report.output import MARKS
from q2n.report.table_model import Column, Quantity
from q2n.version import __version__


def render(template: str, **facts: Any) -> str:
    """The page that this template makes of these facts; what they hold is text, unless it is
    `Markup`."""
    environment = Environment(
        loader=PackageLoader("q2n.report", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["quantity"] = lambda cell: isinstance(cell, Quantity)
    environment.filters["runs"] = _runs
    style = files("q2n.report.pages").joinpath("page.css").read_text(encoding="utf-8")
    return environment.get_template(f"{template}.html.jinja").render(
        mark=Markup(MARKS["html"]),
        style=Markup(style),
        numbers=count(1),
        version=__version__,
        **facts,
    )


def _runs(columns: Iterable[Column]) -> list[tuple[str, int]]:
    """Titles that stand over several columns, and over how many."""
    return [(group, len(list(same))) for group, same in groupby(columns, lambda x: x.group)]
