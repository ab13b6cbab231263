"""The model card: README.md of a checkpoint, with the settings and what was measured.

Its text is card.md.jinja. It states what is known and says what is not: a number that was not
measured is called that.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from q2n.evaluation.results import Comparison
from q2n.report.markdown_text import in_markdown
from q2n.report.table_model import rounded


@dataclass(frozen=True, kw_only=True)
class About:
    """What a card says besides measurements."""

    method: str
    """One line: the method and what is around it."""
    format: str
    """As `--format` calls it."""
    tags: tuple[str, ...]
    """Under which model hubs list it."""
    outside: str
    """What becomes of embeddings, norms, biases and head, in one sentence."""
    language: str
    """Of the lines that load it."""
    library: str = "transformers"
    """Which loads it."""
    runtime: bool
    """Whether the model runs with parts beside its weights."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Everything that the card says."""

    about: About
    base_model: str
    title: str
    loading_example: str
    """Lines that load the checkpoint."""
    settings: Mapping[str, Any]
    """Those that are not as by default."""
    bits_per_weight: float
    """Of the quantized linears."""
    bits_per_weight_all: float
    """Of all weights."""
    full_precision_share: float
    """Of the weights, 0 to 1."""
    bits_per_weight_outside: float
    """Of all but the quantized linears."""
    bytes_outside: int
    """Of the same."""
    ignored: int = 0
    """Linears that the settings leave in full precision."""
    notes: Sequence[str] = ()
    """What a user must know besides, in sentences."""
    bytes_before: int
    bytes_after: int
    comparison: Comparison | None = None
    """With the original, if it was measured."""
    version: str
    """Of q2n."""

    @property
    def hub_name(self) -> str | None:
        """Of the original; None where it came from a folder or a package, whose names say nothing
        elsewhere."""
        is_name = re.fullmatch(r"[\w.-]+/[^/]+", self.base_model) is not None
        return self.base_model if is_name and not Path(self.base_model).exists() else None

    @property
    def original(self) -> str:
        """Its name in a sentence, without the folders in which it lies."""
        return self.hub_name or Path(self.base_model).name

    @property
    def tags(self) -> list[str]:
        """Under which model hubs list the checkpoint, each once."""
        return list(dict.fromkeys(("quantized", "q2n", *self.about.tags)))


def render_card(facts: CardFacts) -> str:
    """The card as Markdown with YAML front matter."""
    template = files("q2n.report").joinpath("card.md.jinja").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["megabytes"] = lambda size: f"{size / 1e6:.1f} MB"
    environment.filters["small"] = lambda value: rounded(value, 4)
    environment.filters["error"] = _error
    environment.filters["percent_error"] = lambda e: _error(e and 100 * e)
    environment.filters["yaml"] = _quoted
    environment.filters["text"] = in_markdown
    return environment.from_string(template).render(facts=facts)


def _error(error: float | None) -> str:
    return "not measured" if error is None else f"{error:.4g}"


def _quoted(text: str) -> str:
    """A YAML scalar that cannot be read as anything but this text."""
    return "'" + text.replace("'", "''") + "'"
