"""How results were made, as tables: texts, settings, versions and machines, one value a line."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from q2n.report.experiment import ExperimentRecord, TextResult
from q2n.report.table_model import Column, Table, TableRow

DIGITS = 12
"""Of a hash that are shown."""


def provenance(records: Sequence[ExperimentRecord]) -> list[Table]:
    """Of all records of a report, what is known."""
    tables = [_texts(records), *_settings(records), _versions(records)]
    return [table for table in tables if table.rows]


def _texts(records: Iterable[ExperimentRecord]) -> Table:
    """Each text with what makes its figures comparable."""
    found = dict.fromkeys(_described(text) for record in records for text in record.texts)
    titles = ("text", "protocol", "windows", "tokens each", "sha256 of the windows")
    return Table(
        name="texts",
        title="Texts",
        columns=[Column(title, kind="text") for title in titles],
        rows=[TableRow(cells) for cells in found],
        notes=["Figures compare where the hash is the same."],
    )


def _described(text: TextResult) -> tuple[str, ...]:
    sizes = str(text.windows), str(text.length)
    return text.text, text.protocol, *sizes, text.sha256[:DIGITS]


def _settings(records: Iterable[ExperimentRecord]) -> Iterator[Table]:
    """One table a plan: a setting and the values that its cells have."""
    plans: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        plans.setdefault(record.plan, []).append(record.settings or {})
    for plan, settings in plans.items():
        yield _named_values(f"Settings of {plan}", "setting", settings)


def _versions(records: Iterable[ExperimentRecord]) -> Table:
    hashes = ({"model sha256": (record.model_sha256 or "")[:DIGITS]} for record in records)
    all_of = zip(records, hashes, strict=True)
    facts = [{**record.software, **record.machine, **known} for record, known in all_of]
    return _named_values("Versions and machines", "what", facts)


def _named_values(title: str, what: str, facts: Sequence[Mapping[str, Any]]) -> Table:
    names = dict.fromkeys(name for each in facts for name in each)
    values = {
        name: dict.fromkeys(str(x) for each in facts if (x := each.get(name)) not in (None, ""))
        for name in names
    }
    return Table(
        name=title,
        title=title,
        columns=[Column(what, kind="label"), Column("values", kind="text")],
        rows=[TableRow([name, ", ".join(found)]) for name, found in values.items() if found],
    )
