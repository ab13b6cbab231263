"""benchmarks/gpu.py in its small form, on a CPU."""

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(
    not BENCHMARKS.is_dir(), reason="the benchmarks are not in the package's source archive"
)


@pytest.fixture
def program(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", *options])
        runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def seconds(table: str) -> dict[str, float]:
    rows = [line.split() for line in table.splitlines() if len(line.split()) == 2]
    return {name: float(number) for name, number in rows if number[:1].isdigit()}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama3-8b", "qwen3-30b-a3b"])
def test_every_stage_is_timed(program, model):
    printed = program("--scale", "tiny", "--model", model, "--settings", "gptq + q2n")
    assert "3 of 3 blocks" in printed
    found = seconds(printed)
    total = found.pop("total")
    assert list(found) == ["open", "load", "forward", "gram", "factor", "solve", "store", "other"]
    assert found["solve"] > 0
    assert sum(found.values()) == pytest.approx(total, abs=0.05)


@pytest.mark.slow
def test_a_part_of_the_blocks_runs(program):
    printed = program("--scale", "tiny", "--blocks", "1", "--settings", "gptq good", "quip good")
    assert "1 of 3 blocks" in printed and "gptq good" in printed and "quip good" in printed


def test_a_full_run_on_a_cpu_is_refused(program, capsys):
    with pytest.raises(SystemExit):
        program("--scale", "full")
    assert "give --scale tiny" in capsys.readouterr().err


def test_floors_are_work_over_rates(monkeypatch):
    """One linear of 2 outputs and 3 inputs, 10 tokens, two streams."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from measuring.floors import Device, Work, find_device, floors

    device = Device(half=1e-12, float32=1e-12, memory=1e-9, link=1e-9)
    assert floors(Work([(2, 3)], [3], 10, 2), device) == pytest.approx(
        {"load": 12, "forward": 240, "gram": 90, "solve": 18, "store": 6}
    )
    assert find_device("NVIDIA H100 80GB HBM3").memory == 3350
    assert find_device("NVIDIA H100 PCIe").memory == 2000
    assert find_device("CPU") is None
