"""JSON under a checksum: a file in which one byte has changed is not read.

    {"sha256": "...",
    "sealed": the JSON}

The checksum is over the bytes of the inner JSON, and the frame around it is fixed.
"""

import hashlib
import json
from typing import Any

_HEAD, _MIDDLE, _TAIL = b'{"sha256": "', b'",\n"sealed": ', b"}\n"
_START = len(_HEAD) + 64 + len(_MIDDLE)


def seal(values: Any) -> bytes:
    """JSON values as the bytes of a file."""
    return _framed(json.dumps(values, indent=1).encode())


def unseal(data: bytes) -> Any:
    """Inverse of `seal`.

    Raises:
        ValueError: these are not the bytes that `seal` gave.
    """
    body = data[_START : -len(_TAIL)]
    if _framed(body) != data:
        raise ValueError("the checksum differs")
    return json.loads(body)


def _framed(body: bytes) -> bytes:
    return _HEAD + hashlib.sha256(body).hexdigest().encode() + _MIDDLE + body + _TAIL
