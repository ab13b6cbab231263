"""What only prints starts quickly: it imports nothing that takes long to import."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_records import sweep, write_cells
from tiny import save_tiny, tiny_text

import q2n
from q2n.cli.main import main

pytestmark = pytest.mark.slow

HEAVY = ("torch", "numpy", "transformers", "numba", "matplotlib")
"""Each takes a tenth of a second or several."""
CALL = """
import json, sys
from q2n.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:  # argparse, after help and version
    code = stop.code or 0
print(json.dumps([name for name in %r if name in sys.modules]), file=sys.stderr)
sys.exit(code)
"""
QUANTIZE = ["quantize", "model", "--output", "out"]
CASES: dict[str, tuple[list[str], int]] = {
    "help": (["--help"], 0),
    "version": (["--version"], 0),
    "methods": (["methods"], 0),
    "help of quantize": (["quantize", "--help"], 0),
    "help of eval": (["eval", "--help"], 0),
    "help of report": (["report", "--help"], 0),
    "settings": ([*QUANTIZE, "--quality", "good", "--print-config"], 0),
    "no command": ([], 2),
    "unknown command": (["quantise"], 2),
    "unknown flag": ([*QUANTIZE, "--bit", "4"], 2),
    "bad value": ([*QUANTIZE, "--bits", "7"], 2),
    "unknown method": ([*QUANTIZE, "--method", "magic"], 2),
    "option of another method": ([*QUANTIZE, "--method", "rtn", "--act-order"], 2),
    "option of what is off": ([*QUANTIZE, "--ridge", "0.1"], 2),
    "no output": (["quantize", "model"], 2),
    "report of nothing": (["report", "nowhere"], 2),
}


@pytest.mark.parametrize(("arguments", "code"), CASES.values(), ids=CASES)
def test_what_only_prints_imports_nothing_slow(tmp_path, arguments, code):
    """CPU seconds are printed (pytest -s), not judged: expected are less than 0.5."""
    environment = {**os.environ, "PYTHONPATH": str(Path(q2n.__file__).parents[1])}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", CALL % (HEAVY,), *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"q2n {' '.join(arguments)}: {seconds:.2f} s of CPU")
    *message, imported = done.stderr.splitlines()
    assert (done.returncode, json.loads(imported)) == (code, []), done.stderr
    assert bool(message) == bool(code) and bool(done.stdout) == (code == 0)
    assert len(message) <= 1 and list(tmp_path.iterdir()) == []


def test_tables_of_records_need_neither_torch_nor_a_drawing(tmp_path):
    folder = write_cells(sweep(seeds=(0,)), tmp_path / "runs")
    environment = {**os.environ, "PYTHONPATH": str(Path(q2n.__file__).parents[1])}
    call = [sys.executable, "-c", CALL % (HEAVY,), "report", str(folder)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    said, imported = done.stderr.splitlines()
    assert (done.returncode, json.loads(imported)) == (0, []) and "read 24" in said


def test_onednn_keeps_few_programs_unless_told_otherwise(monkeypatch, capsys):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, "8")
    assert main(["methods"]) == 0 and os.environ[name] == "8"
    monkeypatch.delenv(name)
    assert main(["methods"]) == 0 and os.environ[name] == "64"


def test_the_record_of_a_checkpoint_needs_no_torch(tmp_path):
    """What was measured included."""
    save_tiny(tmp_path / "model", layers=2)
    (tmp_path / "text.txt").write_text(tiny_text())
    text = {"corpus": str(tmp_path / "text.txt"), "ppl": str(tmp_path / "text.txt")}
    q2n.quantize(
        tmp_path / "model", tmp_path / "out", bits=4, length=16, windows=2, ppl_windows=2, **text
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(q2n.__file__).parents[1])}
    call = [sys.executable, "-c", CALL % (HEAVY,), "inspect", str(tmp_path / "out")]
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stderr)) == (0, []), done.stderr
    assert "q_proj" in done.stdout and "Perplexity of the quantized weights" in done.stdout
