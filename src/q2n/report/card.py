"""The model card: README.md of a checkpoint, with the settings and what was measured.

Its text is card.md.jinja. It states what is known and says what is not: a number that was not
measured is called that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """One measured perplexity."""

    model: str
    """Which weights: "original" or "this checkpoint"."""
    corpus: str
    value: float
    standard_error: float | None
    context: int
    """Tokens per window."""
    windows: int


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Everything that the card says."""

    base_model: str
    title: str
    format: str
    """As `--format` calls it."""
    tags: Sequence[str]
    """Under which model hubs list it, each once."""
    loading_example: str
    """Python lines that load the checkpoint."""
    method: str
    """One line: the method and whether the null-space step was applied."""
    settings: Mapping[str, Any]
    bits_per_weight: float
    bytes_before: int
    bytes_after: int
    perplexities: Sequence[Perplexity] = ()
    runtime: bool = False
    """Whether the model runs with parts beside its weights."""
    version: str
    """Of q2n."""


def render_card(facts: CardFacts) -> str:
    """The card as Markdown with YAML front matter."""
    template = files("q2n.report").joinpath("card.md.jinja").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["megabytes"] = lambda size: f"{size / 1e6:.1f} MB"
    environment.filters["error"] = lambda e: "not measured" if e is None else f"{e:.3f}"
    environment.filters["yaml"] = _quoted
    return environment.from_string(template).render(facts=facts)


def _quoted(text: str) -> str:
    """A YAML scalar that cannot be read as anything but this text."""
    return "'" + text.replace("'", "''") + "'"
