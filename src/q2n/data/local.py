"""Text from local files. The suffix says what a document is.

- `.txt`: the whole file.
- `.raw`: WikiText's line format. Each line with its newline is a row, a blank line the
  empty row, so that rows joined by two newlines give the text that the hub's copy gives.
- `.jsonl`: the "text" of each line. Lines end at a newline only: the texts may hold the
  other characters at which Python's `splitlines` would cut.
- `.parquet`: each row of the column "text".
"""

import json
from collections.abc import Callable
from pathlib import Path

from q2n.errors import InputError


def read_documents(path: Path) -> list[str]:
    """The documents of a file, or those of all text files right inside a folder, by name.

    Raises:
        InputError: an unknown suffix, no text file in the folder, or a file that cannot
            be read; the message names the file and, in a .jsonl file, the line.
    """
    if not path.is_dir():
        return _read_file(path)
    files = sorted(file for file in path.iterdir() if file.suffix in _READERS)
    if not files:
        raise InputError(
            f"the folder {path} holds no {_SUFFIXES} file; give a folder with text files"
        )
    return [document for file in files for document in _read_file(file)]


def _read_file(path: Path) -> list[str]:
    if path.suffix not in _READERS:
        raise InputError(f"{path} is not a {_SUFFIXES} file; rename or convert it")
    try:
        return _READERS[path.suffix](path)
    except OSError as error:
        raise InputError(f"the text file {path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error


def _read_text(path: Path) -> list[str]:
    return [path.read_bytes().decode()]


def _read_wikitext(path: Path) -> list[str]:
    lines = path.read_bytes().decode().split("\n")
    rows = [f"{line}\n" if line.strip() else "" for line in lines]
    return rows if lines[-1] else rows[:-1]


def _read_jsonl(path: Path) -> list[str]:
    documents = []
    for number, line in enumerate(path.read_bytes().decode().split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'{path}, line {number}: not a JSON object with a "text" field'
            ) from error
        if not isinstance(text, str):
            kind = type(text).__name__
            raise InputError(f'{path}, line {number}: "text" is {kind}, not a string')
        documents.append(text)
    return documents


def _read_parquet(path: Path) -> list[str]:
    from pyarrow import ArrowException, parquet

    try:
        column = parquet.read_table(path, columns=["text"])["text"].to_pylist()
    except (ArrowException, KeyError) as error:
        raise InputError(f'{path} is not a parquet file with a "text" column: {error}') from error
    return [text or "" for text in column]


_READERS: dict[str, Callable[[Path], list[str]]] = {
    ".txt": _read_text,
    ".raw": _read_wikitext,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
_SUFFIXES = ", ".join(_READERS)
