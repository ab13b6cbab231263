"""Where text comes from, and how each source is joined and sampled.

- wikitext2: rows joined by two newlines.
- ptb: sentences joined by two newlines; in the test split by a space.
- c4: each calibration window from one document of the first training shard; evaluation on
  the first 1100 documents of the first validation shard, joined by a space, or on windows that a
  protocol has `drawn` from single documents.
- sotu: each calibration window from one address; otherwise joined by two newlines.
- a file or folder, a data set of the hub: documents joined by two newlines.

These are the rules under which the published perplexities were measured. PTB has
two: GPTQ, LeanQuant, QuIP and QuaRot report validation, PB-LLM and OWQ report test,
and the joiner goes with the split. C4 has no test split; its first 256 windows count. The named
ones are read from the hub, or from a folder of files (`directory.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from q2n.data import hub, sotu
from q2n.data.directory import Directory, Rows
from q2n.data.documents import Chat
from q2n.data.hub_documents import PREFIX, HubDocuments, HubName
from q2n.data.local import LocalText, text_files
from q2n.data.protocols import PROTOCOLS, Protocol
from q2n.errors import InputError

SPLITS = ("train", "validation", "test")

C4_EVALUATION_DOCUMENTS = 1100
C4_EVALUATION_WINDOWS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """One split of one source, read when it is needed and as far as it is needed."""

    label: str
    """For records and messages, such as "wikitext2 test"."""
    parts: Iterable[str]
    """The text in parts of any size; each iteration starts anew."""
    documents: Sequence[str] | None = None
    """Where calibration windows are drawn from one document each, not from the text."""
    drawn: bool = False
    """Whether evaluation windows are drawn from `documents` too."""
    most_windows: int | None = None
    """Evaluation stops after so many windows; None: at the end of the text."""
    notes: tuple[str, ...] = ()
    """What a user must know of the source: sentences without a full stop."""


@dataclass(frozen=True)
class Joined:
    """Documents as one text, in parts."""

    documents: Iterable[str]
    joiner: str = "\n\n"

    def __iter__(self) -> Iterator[str]:
        for number, document in enumerate(self.documents):
            if number:
                yield self.joiner
            yield document


def load_corpus(
    name_or_path: str | Path,
    split: str,
    *,
    protocol: Protocol = PROTOCOLS["q2n"],
    data_dir: str | Path | None = None,
    chat: Chat | None = None,
) -> Corpus:
    """One split of a named corpus, of a data set of the hub, or a file or folder of text.

    A file or folder has no splits: its whole text is returned whatever `split` says; a name of the
    hub's with a split of its own keeps that. Texts are read when their parts are asked for; what
    cannot be read as text raises then.

    Args:
        protocol: what it says of the text, but for the split.
        data_dir: folder from which wikitext2, ptb and c4 are read; None: from the hub.
        chat: makes conversations texts; None: files hold none.

    Raises:
        InputError: no such corpus, split, file or folder, a hub that cannot be reached, or a
            package that is not installed.
    """
    if split not in SPLITS:
        raise InputError(f"there is no split {split!r}; use one of {', '.join(SPLITS)}")
    name = str(name_or_path)
    if name in _NAMED:
        source = partial(_rows, name, None if data_dir is None else Directory(data_dir))
        return _NAMED[name](split, source, protocol)
    if name.startswith(PREFIX):
        documents = HubDocuments(name, split, chat)
        return Corpus(label=documents.label, parts=Joined(documents), notes=documents.notes)
    try:
        path = Path(name_or_path).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # a folder without permission, "~nobody"
        raise InputError(f"the text {name!r} cannot be opened: {error}") from error
    if exists:
        text = LocalText(text_files(path), protocol.verbatim, chat)
        return Corpus(label=path.name or str(path), parts=text)
    raise InputError(
        f"there is no corpus and no file or folder called {name!r}; "
        f"use one of {', '.join(NAMES)}, a .txt, .raw, .jsonl or .parquet file, or "
        "hub:ORG/NAME"
    )


def takes_split(name: str) -> bool:
    """Whether a text has splits, and its name says none."""
    return name in _NAMED or (name.startswith(PREFIX) and HubName.of(name).split is None)


Source = Callable[[str], Rows]
"""Split -> its rows."""


def _rows(name: str, directory: Directory | None, split: str) -> Rows:
    if directory is None:
        return hub.TEXTS[name].rows(split), ()
    return directory.rows(name, split)


def _wikitext2(split: str, source: Source, protocol: Protocol) -> Corpus:
    rows, notes = source(split)
    parts = Joined([row or " \n" for row in rows], "") if protocol.verbatim else Joined(rows)
    return Corpus(label=f"wikitext2 {split}", parts=parts, notes=notes)


def _ptb(split: str, source: Source, protocol: Protocol) -> Corpus:
    rows, notes = source(split)
    joiner = " " if split == "test" else "\n\n"
    return Corpus(label=f"ptb {split}", parts=Joined(rows, joiner), notes=notes)


def _c4(split: str, source: Source, protocol: Protocol) -> Corpus:
    rows, notes = source("train" if split == "train" else "validation")
    if split == "train":
        return Corpus(label="c4 train", parts=Joined(rows), documents=rows, notes=notes)
    drawn = protocol.drawn.get("c4")
    return Corpus(
        label="c4 validation",
        parts=Joined(rows[:C4_EVALUATION_DOCUMENTS], " "),
        documents=rows if drawn else None,
        drawn=bool(drawn),
        most_windows=drawn or C4_EVALUATION_WINDOWS,
        notes=notes,
    )


def _sotu(split: str, source: Source, protocol: Protocol) -> Corpus:
    addresses = sotu.addresses(split)
    drawn = addresses if split == "train" else None
    return Corpus(label=f"sotu {split}", parts=Joined(addresses), documents=drawn)


_NAMED: dict[str, Callable[[str, Source, Protocol], Corpus]] = {
    "wikitext2": _wikitext2,
    "c4": _c4,
    "ptb": _ptb,
    "sotu": _sotu,
}
NAMES = tuple(_NAMED)
"""The corpora that have a name."""
