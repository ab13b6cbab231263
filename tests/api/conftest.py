"""A tiny model and its text in a folder."""

import pytest
from tiny import save_tiny, tiny_text


@pytest.fixture
def place(tmp_path):
    save_tiny(tmp_path / "model")
    (tmp_path / "text.txt").write_text(tiny_text())
    return tmp_path
