"""The model card: README.md of a checkpoint, with the settings and what was measured.

It states what is known and says what is not: a number that was not measured is called that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from q2n.formats.format import Format


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """One measured perplexity."""

    model: str
    """Which weights: "original" or "this checkpoint"."""
    corpus: str
    value: float
    standard_error: float | None
    context: int
    """Tokens a window."""
    windows: int


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Everything that the card says."""

    base_model: str
    title: str
    format: Format
    directory: Path
    method: str
    """One line: the method and whether the null-space step was applied."""
    settings: Mapping[str, Any]
    bits_per_weight: float
    bytes_before: int
    bytes_after: int
    perplexities: Sequence[Perplexity] = ()
    online: bool = False
    """Whether the model runs with parts beside its weights."""
    references: Sequence[str] = ()
    """Papers of the method, one line each."""
    version: str
    """Of q2n."""


TEMPLATE = """\
---
base_model: {{ facts.base_model | yaml }}
library_name: transformers
pipeline_tag: text-generation
tags:
{%- for tag in ("quantized", "q2n", facts.format.quant_method) | select | unique %}
- {{ tag }}
{%- endfor %}
---

# {{ facts.title }}

{{ facts.base_model }} with the weights of its decoder linears quantized by q2n
{{ facts.version }}: {{ facts.method }}. Embeddings, norms, biases and the
output head are {{ "not quantized" if facts.online else "unchanged" }}.
{%- if facts.online %} The model runs with parts beside its weights
(rotations, rounded activations or cache, as the settings say); without them its text is wrong.
{%- endif %}

| | |
|---|---|
| format | {{ facts.format.name }} |
| bits a quantized weight, scales and zero points counted | {{ "%.3f" % facts.bits_per_weight }} |
| size of all tensors, before | {{ facts.bytes_before | megabytes }} |
| size of all tensors, here | {{ facts.bytes_after | megabytes }} |

## Load it

```python
{{ facts.format.loading_example(facts.directory) | trim }}
```

## What it costs
{% if facts.perplexities %}
| weights | text | perplexity | standard error | windows x tokens |
|---|---|---|---|---|
{%- for p in facts.perplexities %}
| {{ p.model }} | {{ p.corpus }} | {{ "%.3f" % p.value }} | {{ p.standard_error | error }} |
{{- " %d x %d" % (p.windows, p.context) }} |
{%- endfor %}

Lower is better. One calibration seed; the standard error is that of the text, not of the
calibration. Perplexity does not predict every task: measure yours.
{% else %}
Perplexity was not measured for this checkpoint. Measure it on your own task before use.
{% endif %}
## Settings

| | |
|---|---|
{%- for key, value in facts.settings.items() %}
| {{ key }} | {{ value }} |
{%- endfor %}

The full record is in `q2n.json`.
{%- if facts.references %}

## Method
{% for line in facts.references %}
- {{ line }}
{%- endfor %}
{%- endif %}

The licence and the limits of {{ facts.base_model }} apply to this checkpoint too.
"""


def render_card(facts: CardFacts) -> str:
    """The card as Markdown with YAML front matter."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["megabytes"] = lambda size: f"{size / 1e6:.1f} MB"
    environment.filters["error"] = lambda e: "not measured" if e is None else f"{e:.3f}"
    environment.filters["yaml"] = _quoted
    return environment.from_string(TEMPLATE).render(facts=facts)


def _quoted(text: str) -> str:
    """A YAML scalar that cannot be read as anything but this text."""
    return "'" + text.replace("'", "''") + "'"
