"""A tiny checkpoint with a text, and `q2n quantize` on them."""

import pytest
from tiny import save_tiny, tiny_text

from q2n.cli.main import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny checkpoint and a text."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model")
    (folder / "text.txt").write_text(tiny_text())
    return folder


@pytest.fixture
def quantize(place, monkeypatch, tmp_path):
    """Run `q2n quantize model` in a fresh folder; returns (exit code, output folder)."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, model: str = str(place / "model")):
        text = ("--corpus", str(place / "text.txt"), "--windows", "4", "--length", "16")
        return main(["quantize", model, "--output", "out", *text, *flags]), tmp_path / "out"

    return run


@pytest.fixture
def one_line(capsys):
    """The one line of the error that was printed."""

    def read() -> str:
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.strip()]
        errors = [line for line in lines if not line.startswith("blocks")]
        assert len(errors) == 1, captured.err
        assert lines[-1].startswith("error:")
        return lines[-1]

    return read
