"""Text from local files, a megabyte at a time. The suffix says what a document is.

- `.txt`: the whole file.
- `.raw`: WikiText's line format. Each line with its newline is a row, a blank line the
  empty row, so that rows joined by two newlines give the text that the hub's copy gives.
- `.jsonl`: the "text" of each line. Lines end at a newline only: the texts may hold the
  other characters at which Python's `splitlines` would cut.
- `.parquet`: each row of the column "text".

Rows of the last two may be conversations (`documents.py`).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q2n.data.decoding import decoded, lines
from q2n.data.documents import EMPTY, MESSAGES, TEXT, Chat, text_of_row
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
    chat: Chat | None = None
    """Of the model; None: conversations are refused."""

    def __iter__(self) -> Iterator[str]:
        """Raises `InputError` where a file cannot be read; the message says where."""
        documents = (document for file in self.files for document in self._read(file))
        for number, document in enumerate(documents):
            if number:
                yield "\n\n"
            yield from document

    def _read(self, file: Path) -> Iterator[Iterable[str]]:
        suffix = _suffix(file)
        if suffix in _ROWS:
            rows = _ROWS[suffix](file)
            return ((text_of_row(row, where, self.chat),) for where, row in rows)
        whole = suffix == ".txt" or self.verbatim
        return _read_text(file) if whole else read_wikitext(file)


def text_files(path: Path) -> tuple[Path, ...]:
    """The file, or all text files right inside a folder, by name; none that is hidden.

    Raises:
        InputError: an unknown suffix, no text file in the folder, or not a regular file.
    """
    try:
        files = tuple(sorted(path.iterdir())) if path.is_dir() else (path,)
        if path.is_dir():
            files = tuple(x for x in files if _suffix(x) in _READ and x.name[0] != ".")
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
    if _suffix(path) not in _READ:
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


def read_jsonl(path: Path) -> Iterator[str]:
    """The documents of a `.jsonl` file of texts. Raises as `LocalText`."""
    return (text_of_row(row, where, None) for where, row in _jsonl_rows(path))


Row = tuple[str, Mapping[str, Any]]
"""Where it is, for messages, and what it holds."""


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines(path), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _object(line, where)


def _object(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not row.keys() & {TEXT, MESSAGES}:
        raise InputError(f'{where}: not a JSON object with a "{TEXT}" or "{MESSAGES}" field')
    return row


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            kind = TEXT if TEXT in file.schema_arrow.names else MESSAGES
            column = file.schema_arrow.field(kind)
            if kind == TEXT:
                _require_text(column.type)
            for batch in file.iter_batches(batch_size=ROWS, columns=[kind]):
                yield from (
                    (str(path), {kind: x or EMPTY[kind]}) for x in batch.column(0).to_pylist()
                )
    except (ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{path} is not a parquet file with a "{TEXT}" or "{MESSAGES}" column: {error}'
        ) from error


def _require_text(kind: Any) -> None:
    """Of pyarrow's types those that hold strings, "null" among them: every row is empty."""
    import pyarrow.types as kinds

    value = kind.value_type if kinds.is_dictionary(kind) else kind
    text = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_null)
    if not any(holds(value) for holds in text):
        raise TypeError(f"it has {kind}")


_ROWS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
}
_READ = (".txt", ".raw", *_ROWS)
_SUFFIXES = ", ".join(_READ)
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz")
