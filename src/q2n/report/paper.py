"""What the papers print for cells of recipes (paper.yaml, which says how few figures there are).

A cell of a sweep has these figures if its plan is the recipe and it has all labels of the entry;
others, such as its seed, do not matter. Entries name the model, so that small models have none.
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from q2n.report.experiment import Label

MEAN = "mean of tasks"
"""Name of the mean of all tasks, in percent."""


def paper_figures(plan: str, labels: Mapping[str, Label]) -> Mapping[str, float] | None:
    """Text -> perplexity, and task (or MEAN) -> accuracy in percent; None for a cell of which
    nothing is known."""
    for cell in _plans().get(plan, {}).get("cells", ()):
        if cell["labels"].items() <= labels.items():
            return cell["figures"]
    return None


def paper_source(plan: str) -> str | None:
    """Where the figures of a plan stand; None for a plan without any."""
    return _plans().get(plan, {}).get("source")


@cache
def _plans() -> dict[str, Any]:
    text = files("q2n.report").joinpath("paper.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)
