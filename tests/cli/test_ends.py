"""How the command ends when somebody else ends it: Ctrl-C, SIGTERM, a closed pipe, a full disk."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import q2n
from q2n.cli import commands
from q2n.cli.main import main
from q2n.logging import Screen

COMMAND = [sys.executable, "-m", "q2n.cli.main"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(q2n.__file__).parents[1])}


def ending(monkeypatch, end):
    """The command does what `end` does."""

    def parse(self, arguments):
        return type("Parsed", (), {"run": staticmethod(lambda parsed: end())})()

    monkeypatch.setattr(commands.Parser, "parse_args", parse)
    return main([])


def interrupt():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)


def disguise():
    """As numpy does where Ctrl-C ends one of its imports."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    except KeyboardInterrupt:
        raise ImportError("numpy is broken") from None


@pytest.fixture()
def listening():
    """To Ctrl-C, which is ignored where the tests are a job in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("end", "code", "word"),
    [
        (interrupt, 130, "interrupted"),
        (disguise, 130, "interrupted"),
        (terminate, 143, "terminated"),
    ],
)
def test_a_signal_is_one_line(listening, monkeypatch, capsys, end, code, word):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert ending(monkeypatch, end) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and word in lines[0] and "--resume" in lines[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_console_without_a_reader_does_not_end_the_program():
    with pytest.raises(BrokenPipeError):
        Screen().on_broken_pipe()


def run_into(stdout, *arguments):
    """Exit code and standard error of a command."""
    done = subprocess.run(
        [*COMMAND, *arguments], env=ENVIRONMENT, stdout=stdout, stderr=subprocess.PIPE, text=True
    )
    return done.returncode, done.stderr


@pytest.fixture
def closed_pipe():
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["--version"]])
def test_a_closed_pipe_is_no_failure(closed_pipe, arguments):
    """argparse, which prints help and version, may swallow the failure."""
    code, said = run_into(closed_pipe, *arguments)
    assert (code == 141 or (code == 0 and arguments != ["methods"])) and said == ""


@pytest.mark.slow
def test_a_closed_pipe_ends_a_run_that_goes_on(closed_pipe, place, tmp_path):
    text = ["--corpus", str(place / "text.txt"), "--windows", "4", "--length", "16", "--bits", "3"]
    call = ["quantize", str(place / "model"), "--output", str(tmp_path / "out"), *text, "--json"]
    assert run_into(closed_pipe, *call) == (141, "")
    assert [file.name for file in tmp_path.iterdir()] == ["out.partial"]
    assert run_into(subprocess.DEVNULL, *call, "--resume") == (0, "")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert run_into(closed_pipe, "inspect", str(tmp_path / "out")) == (141, "")
    assert run_into(closed_pipe, "inspect", str(tmp_path / "out"), "--json") == (141, "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_output_is_one_line():
    with open("/dev/full", "w") as full:
        code, said = run_into(full, "methods")
    assert code == 1 and said.count("\n") == 1 and "No space left on device" in said


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_an_interrupt_while_it_starts_is_one_line(place, tmp_path, seconds):
    """While torch and transformers are imported."""
    call = ["quantize", str(place / "model"), "--output", str(tmp_path / "out"), "--windows", "4"]
    with subprocess.Popen([*COMMAND, *call], env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1].decode()
    assert "Traceback" not in said and process.returncode in (130, 2)
    assert list(tmp_path.iterdir()) == []
