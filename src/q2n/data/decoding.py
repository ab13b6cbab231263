"""A file as UTF-8 text, a megabyte at a time; what is no such text is named with its place."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from q2n.errors import InputError

CHUNK = 2**20
LONGEST_LINE = 2**26
"""Characters of a line that is read as one."""

SIGNATURES = {
    codecs.BOM_UTF16_LE: "UTF-16; convert it",
    codecs.BOM_UTF16_BE: "UTF-16; convert it",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"BZh": "compressed by bzip2; unpack it",
    b"\xfd7zXZ": "compressed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"PAR1": "a parquet file; rename it",
}
"""First bytes of what is found in place of text."""


def decoded(path: Path) -> Iterator[str]:
    """The text in parts, without a byte order mark; line ends as they are.

    Raises:
        InputError: it cannot be read, or is not UTF-8; the message has the first such byte.
    """
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    for chunk in _chunks(path):
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            place = done - pending + error.start
            raise InputError(
                f"{path} is not UTF-8 text: {error.reason} at byte {place}; convert it"
            ) from error
        yield text if done else text.removeprefix("\ufeff")
        done += len(chunk)


def lines(path: Path) -> Iterator[str]:
    r"""Lines without their "\n", at which alone they end. Raises as `decoded`, and for a line of
    more than `LONGEST_LINE` characters."""
    rest = ""
    for part in decoded(path):
        *whole, rest = (rest + part).split("\n")
        yield from whole
        if len(rest) > LONGEST_LINE:
            raise InputError(f"{path} has a line of more than {LONGEST_LINE} characters; cut it")
    if rest:
        yield rest


def _chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, then an empty chunk."""
    try:
        with path.open("rb") as file:
            chunk = file.read(CHUNK)
            for signature, kind in SIGNATURES.items():
                if chunk.startswith(signature):
                    raise InputError(f"{path} is not UTF-8 text but {kind}")
            while chunk:
                yield chunk
                chunk = file.read(CHUNK)
            yield b""
    except OSError as error:
        raise InputError(f"the text file {path} cannot be read: {error}") from error
