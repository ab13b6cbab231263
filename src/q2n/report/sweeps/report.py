"""All that a report shows, computed once: rows and leads of every plan, and the tables of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from q2n.report.sweeps.cut_table import cut_table
from q2n.report.sweeps.leads import Lead, lead_table, leads_of
from q2n.report.sweeps.result_table import result_table
from q2n.report.sweeps.rows import Row, rows_of
from q2n.report.sweeps.runs import Runs
from q2n.report.sweeps.search_table import search_table
from q2n.report.sweeps.time_table import time_table
from q2n.report.table_model import Table


@dataclass(frozen=True)
class Report:
    """Of these runs."""

    runs: Runs

    @cached_property
    def plans(self) -> Mapping[str, Sequence[Row]]:
        """Plan -> its rows."""
        names = dict.fromkeys(record.plan for record in self.runs.records)
        return {n: rows_of(x for x in self.runs.records if x.plan == n) for n in names}

    @cached_property
    def leads(self) -> list[Lead]:
        """What wins, in all plans."""
        return [lead for plan, rows in self.plans.items() for lead in leads_of(plan, rows)]

    @property
    def left_out(self) -> int:
        """Records in whose rows others count, done with other settings, texts or models."""
        shown = sum(len(row.cells) for rows in self.plans.values() for row in rows)
        return len(self.runs.records) - shown

    @property
    def days(self) -> list[str]:
        """On which cells were started, the first one first."""
        return sorted({record.started[:10] for record in self.runs.records})

    @property
    def introduction(self) -> str:
        """How much there is, and of when."""
        days = " to ".join(dict.fromkeys((self.days[0], self.days[-1])))
        plans = f"{len(self.plans)} plan{'s' * (len(self.plans) > 1)}"
        cells = f"{len(self.runs.records)} cell{'s' * (len(self.runs.records) > 1)}"
        return f"{cells} of {plans}, measured {days}."

    @cached_property
    def tables_of(self) -> Mapping[str, Sequence[Table]]:
        """Plan -> its tables that have something to show."""
        return {plan: _tables(plan, rows) for plan, rows in self.plans.items()}

    @property
    def result_tables(self) -> list[Table]:
        """Of all plans."""
        return [table for tables in self.tables_of.values() for table in tables]

    @property
    def tables(self) -> list[Table]:
        """What wins, and the tables of all plans."""
        return [lead_table(self.leads)] * bool(self.leads) + self.result_tables

    @property
    def lines(self) -> str:
        """The records as JSON lines."""
        records = (record.to_json() for record in self.runs.records)
        return "".join(json.dumps(record) + "\n" for record in records)


def _tables(plan: str, rows: Sequence[Row]) -> list[Table]:
    makers = (result_table, time_table, search_table, cut_table)
    return [table for make in makers if (table := make(plan, rows)) is not None]
