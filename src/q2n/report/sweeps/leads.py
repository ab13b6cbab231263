"""What wins: for each model, width and text of a plan the row with the least divergence from the
original (where that was not measured, with the least perplexity), and how far ahead it is.

A lead is beyond its error where it exceeds twice the error of the paired difference, of text and
seeds together, and more than that where few seeds tell it (paired.py). With one seed only the
text's error is known, and that is said.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from q2n.report.paired import Estimate
from q2n.report.sweeps.naming import BITS, MODEL, name_of, varying_axes, width_of
from q2n.report.sweeps.rows import OnText, Row
from q2n.report.table_model import Cell, Column, Quantity, Table, TableRow, filled

NOTES = (
    "Best: least KL from the original, or least perplexity where no KL was measured.",
    "Lead: KL of the second less that of the best, on the same windows, paired.",
    "Beyond its error: more than twice the error of text and seeds together, and more where few "
    "seeds or windows tell it (Student's t).",
)


@dataclass(frozen=True, kw_only=True)
class Lead:
    """The best row of one model, width and text, and the second."""

    plan: str
    model: str
    width: str
    text: str
    best: str
    """What the row is called among its rivals."""
    row: Row
    """The best."""
    second: str = ""
    """Empty: there is no other."""
    ahead: Estimate | None = None
    """Divergence of the second less that of the best; None where they cannot be paired."""

    @property
    def verdict(self) -> str:
        """In a few words."""
        if not self.second:
            return "no rival"
        if self.ahead is None or self.ahead.total_error is None or self.ahead.value < 0:
            return "cannot be told"  # below 0: ahead on the seeds of its own, behind on common ones
        seeds = "" if self.ahead.spread is not None else ", one seed"
        return ("beyond its error" if self.ahead.is_certain else "within its error") + seeds


def leads_of(plan: str, rows: Sequence[Row]) -> list[Lead]:
    """One for each model, width and text of a plan that was measured."""
    rivals: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        for text in [] if row.is_original else row.texts:
            place = (str(row.labels.get(MODEL, "")), width_of(row), text)
            rivals.setdefault(place, []).append(row)
    shown = [axis for axis in varying_axes(rows) if axis not in (MODEL, BITS)]
    return [_lead(plan, place, found, shown) for place, found in rivals.items()]


def _lead(plan: str, place: tuple[str, str, str], rows: Sequence[Row], shown: list[str]) -> Lead:
    model, width, text = place
    best, *others = sorted(rows, key=lambda row: _score(row, text))
    second = others[0] if others else None
    return Lead(
        plan=plan,
        model=model,
        width=width,
        text=text,
        best=name_of(best, shown),
        row=best,
        second=name_of(second, shown) if second else "",
        ahead=second.on(text).less(best.on(text)) if second else None,
    )


def _score(row: Row, text: str) -> tuple[float, float]:
    """Rows without a divergence come after those that have one."""
    divergence, perplexity = row.on(text).divergence, row.on(text).perplexity
    return (
        float("inf") if divergence is None else divergence.value,
        float("inf") if perplexity is None else perplexity.value,
    )


Found = Mapping[str, Lead]
"""By text: leads of one row over one other."""
Measure = tuple[Column, Callable[[Found], Cell]]


def lead_table(leads: Sequence[Lead]) -> Table:
    """One row for the texts on which the same row is best and the same second."""
    found: dict[tuple[str, ...], dict[str, Lead]] = {}
    for lead in leads:
        place = (lead.plan, lead.model, lead.width, lead.best, lead.second)
        found.setdefault(place, {})[lead.text] = lead
    texts = dict.fromkeys(lead.text for lead in leads)
    plans = list(dict.fromkeys(lead.plan for lead in leads))
    measures = [*_places(), *(measure for text in texts for measure in _measures(text))]
    columns, cells = filled(measures[len(plans) == 1 :], list(found.values()))
    return Table(
        name="leads",
        title="What wins",
        columns=columns,
        rows=[TableRow(row) for row in cells],
        constants={"plan": plans[0]} if len(plans) == 1 else {},
        notes=NOTES,
    )


def _places() -> Iterator[Measure]:
    """Whose lead it is; the same on all texts, but for the verdict."""
    yield Column("plan", kind="label"), lambda found: _any(found).plan
    yield Column("model", kind="label"), lambda found: _any(found).model
    yield Column("bits", kind="label"), lambda found: _any(found).width
    yield Column("best", kind="label"), lambda found: _any(found).best
    yield Column("second", kind="text"), lambda found: _any(found).second
    yield Column("the lead is", kind="text"), _verdicts
    yield Column("bits/weight"), _bits


def _any(found: Found) -> Lead:
    return next(iter(found.values()))


def _bits(found: Found) -> Cell:
    bits = _any(found).row.mean("bits_per_weight")
    return None if bits is None else Quantity(bits, decimals=2)


def _measures(text: str) -> Iterator[Measure]:
    """KL and lead, or the perplexity where there is no KL."""

    def on(found: Found) -> OnText | None:
        return found[text].row.on(text) if text in found else None

    def best(found: Found) -> Cell:
        own = on(found)
        return None if own is None else Quantity.of(own.divergence, decimals=3)

    def ahead(found: Found) -> Cell:
        lead = found[text].ahead if text in found else None
        return None if lead is None else Quantity(lead.value, lead.total_error, decimals=3)

    def perplexity(found: Found) -> Cell:
        own = on(found)
        return None if own is None or own.divergence else Quantity.of(own.perplexity)

    yield Column("KL", text), best
    yield Column("lead", text), ahead
    yield Column("perplexity", text), perplexity


def _verdicts(found: Found) -> str:
    """One for all texts, or those of each."""
    texts: dict[str, list[str]] = {}
    for text, lead in found.items():
        texts.setdefault(lead.verdict, []).append(text)
    if len(texts) == 1:
        return next(iter(texts))
    return "; ".join(f"{verdict} on {', '.join(on)}" for verdict, on in texts.items())
