"""Text from local files, a megabyte at a time. The suffix says what a document is.

- `.txt`: the whole file.
- `.raw`: WikiText's line format. Each line with its newline is a row, a blank line the
  empty row, so that rows joined by two newlines give the text that the hub's copy gives.
- `.jsonl`: the "text" of each line. Lines end at a newline only: the texts may hold the
  other characters at which Python's `splitlines` would cut.
- `.parquet`: each row of the column "text".
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q2n.data.decoding import decoded, lines
from q2n.errors import InputError

ROWS = 256
"""Of a parquet file, in memory at once."""
BUFFER = 2**20
"""Bytes of a parquet file that are read at once."""


@dataclass(frozen=True)
class LocalText:
    """The documents of files joined by two newlines, in parts."""

    files: tuple[Path, ...]
    verbatim: bool = False
    """Whether a `.raw` file is one document, as a `.txt` file is."""

    def __iter__(self) -> Iterator[str]:
        """Raises `InputError` where a file cannot be read; the message says where."""
        documents = (document for file in self.files for document in self._read(file))
        for number, document in enumerate(documents):
            if number:
                yield "\n\n"
            yield from document

    def _read(self, file: Path) -> Iterator[Iterable[str]]:
        return (
            _read_text(file)
            if self.verbatim and _suffix(file) == ".raw"
            else _READERS[_suffix(file)](file)
        )


def text_files(path: Path) -> tuple[Path, ...]:
    """The file, or all text files right inside a folder, by name; none that is hidden.

    Raises:
        InputError: an unknown suffix, no text file in the folder, or not a regular file.
    """
    try:
        files = tuple(sorted(path.iterdir())) if path.is_dir() else (path,)
        if path.is_dir():
            files = tuple(x for x in files if _suffix(x) in _READERS and x.name[0] != ".")
        if not files:
            raise InputError(
                f"the folder {path} holds no {_SUFFIXES} file; give a folder with text files"
            )
        for file in files:
            _check_file(file)
    except OSError as error:
        raise InputError(f"the text {path} cannot be read: {error}") from error
    return files


def _check_file(path: Path) -> None:
    if _suffix(path) in _PACKED:
        raise InputError(f"{path} is compressed; unpack it")
    if _suffix(path) not in _READERS:
        raise InputError(f"{path} is not a {_SUFFIXES} file; rename or convert it")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file; copy its text into one")


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _read_text(path: Path) -> Iterator[Iterable[str]]:
    yield decoded(path)


def read_wikitext(path: Path) -> Iterator[Iterable[str]]:
    """The rows of a `.raw` file, each in parts. Raises as `LocalText`."""
    for line in lines(path):
        yield (line.removesuffix("\r") + "\n" if line.strip() else "",)


def read_jsonl(path: Path) -> Iterator[Iterable[str]]:
    """The documents of a `.jsonl` file, each in parts. Raises as `LocalText`."""
    for number, line in enumerate(lines(path), start=1):
        if line.strip():
            yield (_text_of(line, f"{path}, line {number}"),)


def _text_of(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f'{where}: not a JSON object with a "text" field') from error
    if not isinstance(text, str):
        raise InputError(f'{where}: "text" is {type(text).__name__}, not a string')
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell one half of a surrogate pair
        raise InputError(f'{where}: "text" has half a character: {error}') from error
    return text


def _read_parquet(path: Path) -> Iterator[Iterable[str]]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            _require_text(file.schema_arrow.field("text").type)
            for batch in file.iter_batches(batch_size=ROWS, columns=["text"]):
                yield from ((text or "",) for text in batch.column(0).to_pylist())
    except (ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path} is not a parquet file with a "text" column: {error}') from error


def _require_text(kind: Any) -> None:
    """Of pyarrow's types those that hold strings, "null" among them: every row is empty."""
    import pyarrow.types as kinds

    value = kind.value_type if kinds.is_dictionary(kind) else kind
    text = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_null)
    if not any(holds(value) for holds in text):
        raise TypeError(f"it has {kind}")


_READERS: dict[str, Callable[[Path], Iterator[Iterable[str]]]] = {
    ".txt": _read_text,
    ".raw": read_wikitext,
    ".jsonl": read_jsonl,
    ".parquet": _read_parquet,
}
_SUFFIXES = ", ".join(_READERS)
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz")
