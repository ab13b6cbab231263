"""Any data set of the hub as a text: `hub:ORG/NAME`, `hub:ORG/NAME/CONFIG`, either with `@SPLIT`.

Its documents are rows with a "text", or conversations (`documents.py`). Of more than `MOST_ROWS`
rows every second, third, .. one is read, such that at most so many are: a window takes its text
from a few of them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from q2n.data.documents import EMPTY, MESSAGES, TEXT, Chat, text_of_row
from q2n.data.hub import HubText
from q2n.errors import InputError

PREFIX = "hub:"
MOST_ROWS = 2**14
_FORM = re.compile(
    r"hub:(?P<repository>[^/@]+(/[^/@]+)?)(/(?P<configuration>[^/@]+))?(@(?P<split>[^/@]+))?"
)


@dataclass(frozen=True)
class HubName:
    """What a name says."""

    repository: str
    configuration: str | None
    split: str | None

    @classmethod
    def of(cls, name: str) -> "HubName":
        """
        Raises:
            InputError: a name of another form.
        """
        found = _FORM.fullmatch(name)
        if found is None:
            raise InputError(
                f"{name!r} names no data set of the hub; write hub:ORG/NAME, or "
                "hub:ORG/NAME/CONFIG@SPLIT"
            )
        return cls(found["repository"], found["configuration"], found["split"])


class HubDocuments:
    """The documents of one split, read from disk as they are asked for."""

    def __init__(self, name: str, split: str, chat: Chat | None):
        """
        Args:
            split: where the name has none.
            chat: makes conversations texts; None: they are refused.

        Raises:
            InputError: as `HubName.of` and `HubText.table`; or no row has a text.
        """
        named = HubName.of(name)
        self.label = f"{named.repository} {named.split or split}"
        source = HubText(name=name, repository=named.repository, configuration=named.configuration)
        table = source.table(named.split or split)
        kind = next((kind for kind in (TEXT, MESSAGES) if kind in table.column_names), None)
        if kind is None:
            raise InputError(
                f'{name} has no column "{TEXT}" or "{MESSAGES}" but {", ".join(table.column_names)}'
                "; give its texts in Python: q2n.quantize(..., texts=[...])"
            )
        self.step, self._kind, self._chat = ceil(len(table) / MOST_ROWS) or 1, kind, chat
        self._rows: Any = table.select_columns([kind]).select(range(0, len(table), self.step))

    @property
    def notes(self) -> tuple[str, ...]:
        if self.step == 1:
            return ()
        return (f"Of {self.label} one row of {self.step} is read, {len(self._rows)} in all",)

    def __iter__(self) -> Iterator[str]:
        """Raises `InputError` where a row is no text; the message says which."""
        for number, row in enumerate(self._rows):
            row = {self._kind: row[self._kind] or EMPTY[self._kind]}
            yield text_of_row(row, f"{self.label}, row {number * self.step}", self._chat)
