"""Damaged input: a right result, or one line that says what is wrong (`python -m fuzz`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import __main__ as fuzzer
from fuzz.kinds import KINDS, lay_out, prepare
from safetensors.torch import load_file, save_file

from q2n.errors import InputError

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_two_hundred_damages_of_each_kind() -> None:
    """In a process of its own: as users run q2n, without the checks of shapes."""
    paths = os.pathsep.join((str(TESTS), str(TESTS.parent / "src")))
    command = [sys.executable, "-m", "fuzz", "--cases", "0:200"]
    env = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_fuzzer_sees_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path / "base")
    place = tmp_path / "case"
    lay_out("text", tmp_path / "base", place)
    assert fuzzer.fault_of(place, KINDS["text"]) is None

    def fault(quantize) -> str | None:
        monkeypatch.setattr(fuzzer, "quantize", quantize)
        return fuzzer.fault_of(place, KINDS["text"])

    def raising(*_) -> int:
        raise InputError("out of main")

    def saying(text: str, code: int):
        return lambda *_: print(text, file=sys.stderr) or code

    assert "out of main" in fault(raising)
    assert "exit code 1" in fault(saying("error: no", 1))
    assert "exit code 2" in fault(saying("Traceback\nerror: no", 2))
    assert "files were changed" in fault(saying("error: no", 2))
    assert fault(lambda *_: 0) is None
    file = place / "out/model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.codes"] ^= 255
    save_file(tensors, file, metadata={"format": "pt"})
    assert "up_proj.weight is off by" in fault(lambda *_: 0)
