"""Seeded damage to one file: its bytes, its JSON, its safetensors header, the file itself.

`mutate(file, rng)` changes the file in place and says what it did, so that a failure can be read
and, with the seed, made again.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

DEEP: Any = json.loads("[" * 500 + "]" * 500)
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "1", "-1", "none", "auto", "../../etc/passwd", "\ud83d\ude00\n"),
    *(-1, 0, 1, 3, 7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *([], {}, [None], [[]], {"": None}, [0] * 1000, "x" * 10_000, DEEP),
)
"""What a JSON value becomes."""


def mutate(file: Path, rng: Random) -> str:
    """Damage a file in one of the ways that its kind allows."""
    kinds = [_bytes, _bytes, _replace_file]
    if file.suffix == ".json":
        kinds += [_json] * 9
    if file.suffix == ".safetensors":
        kinds += [_header] * 9
    kind = rng.choice(kinds)
    return f"{file.name}: {kind(file, rng)}"


def _bytes(file: Path, rng: Random) -> str:
    data = bytearray(file.read_bytes())
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 2, 8, 100)))
    flip = bytes(byte ^ (1 << rng.randrange(8)) for byte in data[start:end])
    changes: dict[str, tuple[slice, bytes]] = {
        "flip": (slice(start, end), flip),
        "zero": (slice(start, end), bytes(end - start)),
        "delete": (slice(start, end), b""),
        "repeat": (slice(start, start), bytes(data[start:end])),
        "insert": (slice(start, start), rng.randbytes(rng.choice((1, 3, 50)))),
        "cut off": (slice(start, None), b""),
        "byte order mark": (slice(0, 0), b"\xef\xbb\xbf"),
    }
    name = rng.choice(sorted(changes))
    where, new = changes[name]
    data[where] = new
    file.write_bytes(bytes(data))
    return f"{name} at byte {start} to {end}"


def _replace_file(file: Path, rng: Random) -> str:
    def make_link(target: Path) -> None:
        file.unlink()
        file.symlink_to(target)

    def make_folder() -> None:
        file.unlink()
        file.mkdir()

    ways: dict[str, Callable[[], object]] = {
        "removed": file.unlink,
        "empty": lambda: file.write_bytes(b""),
        "a folder": make_folder,
        "a link to itself": lambda: make_link(file),
        "a link to nothing": lambda: make_link(file.with_name("nothing")),
        "a link to the outside": lambda: make_link(Path("/etc/passwd")),
        "Windows line ends": lambda: file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n")),
        "another file's": lambda: shutil.copyfile(_another(file, rng), file),
        "a pipe": lambda: (file.unlink(), os.mkfifo(file)),
    }
    way = rng.choice(sorted(ways))
    ways[way]()
    return way


def _another(file: Path, rng: Random) -> Path:
    others = [other for other in sorted(file.parent.iterdir()) if other.is_file() and other != file]
    return rng.choice(others) if others else Path(__file__)


def _json(file: Path, rng: Random) -> str:
    value = json.loads(file.read_text())
    value, change = changed_json(value, rng)
    file.write_text(json.dumps(value))
    return change


def changed_json(value: Any, rng: Random) -> tuple[Any, str]:
    """A value with one of its parts replaced, removed, renamed or doubled."""
    path: list[Any] = []
    parent, part = None, value
    while isinstance(part, dict | list) and part and (not path or rng.random() < 0.7):
        key = rng.choice(list(part) if isinstance(part, dict) else range(len(part)))
        path.append(key)
        parent, part = part, part[key]
    new = rng.choice(VALUES)
    if parent is None or rng.random() < 0.02:
        return new, f"is {str(new)[:40]}"
    way, key = rng.choice(("replace", "replace", "replace", "remove", "add")), path[-1]
    if way == "replace":
        parent[key] = new
    elif way == "remove":
        del parent[key]
    elif isinstance(parent, list):
        parent.insert(key, part)
    else:
        parent[f"{key}_"] = parent.pop(key) if rng.random() < 0.5 else new
    return value, f"{way} {'.'.join(map(str, path))[:80]} (was {str(part)[:40]}, {str(new)[:40]})"


def _header(file: Path, rng: Random) -> str:
    """Another header over the same bytes, its own length right."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    way = rng.choice(("json", "json", "json", "dtype", "shape", "rename", "remove", "nan"))
    name = rng.choice([key for key in header if key != "__metadata__"])
    described = header[name]
    body = bytearray(data[8 + length :])
    if way == "json":
        header, change = changed_json(header, rng)
    elif way == "dtype":
        described["dtype"] = rng.choice(("I32", "F16", "BF16", "BOOL", "I64", "F64", "F8_E4M3"))
        change = f"{name} is {described['dtype']}"
    elif way == "shape":
        described["shape"] = rng.choice((described["shape"][::-1], [*described["shape"], 1], []))
        change = f"{name} has shape {described['shape']}"
    elif way == "rename":
        header[rng.choice((f"{name}x", f"mtp.{name}", "score.weight"))] = header.pop(name)
        change = f"{name} has another name"
    elif way == "remove":
        body, change = _without(header, name, body), f"{name} is gone"
    else:
        start, end = described["data_offsets"]
        where = start + rng.randrange(max(1, (end - start) // 4)) * 4
        body[where : where + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"))))
        change = f"{name} has NaN or Inf at byte {where}"
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(body))
    return change


def _without(header: dict[str, Any], name: str, body: bytearray) -> bytearray:
    """The bytes without one tensor's; the header's offsets follow."""
    start, end = header.pop(name)["data_offsets"]
    for key, described in header.items():
        if key != "__metadata__" and described["data_offsets"][0] >= end:
            described["data_offsets"] = [at - (end - start) for at in described["data_offsets"]]
    return body[:start] + body[end:]
