"""Whole files, or none."""

import os

import pytest

from q2n.disk.whole import write_whole


def test_a_file_is_written_over_another(tmp_path):
    file = tmp_path / "x.json"
    write_whole(file, b"before")
    write_whole(file, b"after")
    assert file.read_bytes() == b"after" and os.listdir(tmp_path) == ["x.json"]


def test_what_was_there_survives_a_failure(tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    write_whole(file, b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(file, b"after")
    assert file.read_bytes() == b"before" and os.listdir(tmp_path) == ["x.json"]
