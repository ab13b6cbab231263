"""Named corpora from local files: what lies in the folder that `--data-dir` names.

    wikitext2/wiki.{train,valid,test}.raw          WikiText-2 raw
    ptb/ptb.{train,valid,test}.txt                 Mikolov's files, a sentence a line
    en/c4-train.00000-of-01024.json.gz             the shards that the hub's copy is read from,
    en/c4-validation.00000-of-00008.json.gz        also in c4/ or c4/en/
    c4/*.jsonl                                     documents of C4 without these

They give the rows that the hub gives, so the same text and the same windows. What is less than
the published files is noted: a `wiki.train*.raw` of another name, such as its beginning, and
.jsonl files of C4. These have no splits: the first, third, .. document is for calibration, the
others are for evaluation.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from q2n.data.decoding import lines
from q2n.data.local import read_jsonl, read_wikitext
from q2n.errors import InputError

Rows = tuple[Sequence[str], tuple[str, ...]]
"""The rows of a split, and what the user must know of them."""

SPELLED = {"train": "train", "validation": "valid", "test": "test"}
"""Splits as the files of WikiText-2 and PTB spell them."""

SHARDS = {
    "train": "c4-train.00000-of-01024.json.gz",
    "validation": "c4-validation.00000-of-00008.json.gz",
}


class Directory:
    """A folder of corpora."""

    def __init__(self, path: str | Path):
        """
        Raises:
            InputError: there is no such folder.
        """
        self.path = Path(os.path.expanduser(path))
        if not os.path.isdir(self.path):
            raise InputError(f"there is no folder {str(path)!r}; give --data-dir the path of one")

    def rows(self, name: str, split: str) -> Rows:
        """Rows of a corpus.

        Args:
            name: wikitext2, ptb or c4, which has no split "test".

        Raises:
            InputError: its file is not there, which the message says with what was looked for, or
                cannot be read.
        """
        return {"wikitext2": self._wikitext2, "ptb": self._ptb, "c4": self._c4}[name](split)

    def _wikitext2(self, split: str) -> Rows:
        part = f"wikitext2/wiki.{SPELLED[split]}"
        patterns = (f"{part}.raw", *([f"{part}*.raw"] if split == "train" else []))
        file = self._files(f"wikitext2 {split}", *patterns)[0]
        notes = () if file.name == Path(patterns[0]).name else (_read_from("wikitext2", [file]),)
        return ["".join(parts) for parts in read_wikitext(file)], notes

    def _ptb(self, split: str) -> Rows:
        [file] = self._files(f"ptb {split}", f"ptb/ptb.{SPELLED[split]}.txt")
        return [line.strip() for line in lines(file)], ()

    def _c4(self, split: str) -> Rows:
        places = [f"{folder}{SHARDS[split]}" for folder in ("en/", "c4/", "c4/en/")]
        files = self._files(f"c4 {split}", *places, "c4/*.jsonl")
        if files[0].name == SHARDS[split]:
            return _shard(files[0]), ()
        documents = [text for file in files for text in read_jsonl(file)]
        return documents[list(SHARDS).index(split) :: 2], (_read_from("c4", files),)

    def _files(self, wanted: str, *patterns: str) -> list[Path]:
        """Those of the first pattern that has any, by name."""
        for pattern in patterns:
            if found := sorted(self.path.glob(pattern)):
                return found
        raise InputError(f"{self.path} has no text of {wanted}: looked for {', '.join(patterns)}")


def _read_from(corpus: str, files: list[Path]) -> str:
    names = ", ".join(file.name for file in files)
    return f"{corpus} is read from {names}, which is not all that the published tables take"


def _shard(file: Path) -> Sequence[str]:
    """Documents, read from disk when they are indexed."""
    from datasets import load_dataset  # takes a second, so only when it is used

    try:
        return load_dataset("json", data_files=str(file), split="train")["text"]
    except Exception as error:  # of `datasets`, of pyarrow, of gzip
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{file} cannot be read ({reason}); fetch it again") from error
