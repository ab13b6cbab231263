"""A file under a checksum is read as it was written, or not at all."""

import json

import pytest

from q2n.disk.sealed import seal, unseal

VALUES = {"seed": 7, "layers": {"a.q": {"shape": [8, 12]}}, "loss": 0.1, "text": "ä"}


def test_values_come_back_and_the_file_is_json():
    assert unseal(seal(VALUES)) == VALUES
    assert json.loads(seal(VALUES))["sealed"] == VALUES


def test_every_flipped_bit_is_found():
    data = seal(VALUES)
    for place in range(len(data)):
        for bit in (0, 5):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            with pytest.raises(ValueError):
                unseal(bytes(changed))


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"null", b"\xff\xfe", seal(VALUES)[:-1], seal(VALUES) + b" ", b"[" * 100000],
)
def test_anything_else_is_refused(data):
    with pytest.raises(ValueError):
        unseal(data)
