"""One output, one run, between processes and between threads."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

import q2n
from q2n.disk.lock import lock_file, run_lock
from q2n.errors import InputError

HOLD = """
import sys, time
from pathlib import Path
from q2n.disk.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_nothing_is_left_behind(tmp_path):
    output = tmp_path / "a" / "b" / "out"
    with run_lock(output):
        assert lock_file(output).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_result_stays(tmp_path):
    with run_lock(tmp_path / "a" / "out"):
        (tmp_path / "a" / "out").mkdir()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]


def test_a_failure_ends_it(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), run_lock(tmp_path / "out"):
            raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_lock(tmp_path, monkeypatch):
    """Nothing can be written into the file once it is locked."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_text", full)
        failed = pytest.raises(InputError, match="No space left on device.*; free space there")
        with failed as failure, run_lock(tmp_path / "a" / "out"):
            pass
    assert list(tmp_path.iterdir()) == []
    with run_lock(tmp_path / "a" / "out"):  # while the failure is still held
        assert failure.value is not None


def test_threads_exclude_each_other(tmp_path):
    messages: list[str] = []

    def second() -> None:
        try:
            with run_lock(tmp_path / "out"):
                messages.append("both")
        except InputError as failure:
            messages.append(str(failure))

    with run_lock(tmp_path / "out"):
        thread = Thread(target=second)
        thread.start()
        thread.join()
        assert lock_file(tmp_path / "out").exists()
    assert len(messages) == 1 and f"process {os.getpid()} on {socket.gethostname()}" in messages[0]
    with run_lock(tmp_path / "out"), run_lock(tmp_path / "other"):
        pass


@pytest.mark.slow
def test_the_holder_is_named_and_a_killed_one_leaves_no_lock(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(q2n.__file__).parents[1])}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(InputError, match=f"process {holder.pid} on .*, since 20.*choose"),
            run_lock(tmp_path / "out"),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
    assert lock_file(tmp_path / "out").exists()
    with run_lock(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="cannot be written to .*--output"),
        run_lock(tmp_path / "file" / "out"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_linked_lock_is_not_written_through(tmp_path):
    (tmp_path / "mine").write_text("precious")
    lock_file(tmp_path / "out").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="cannot be written"), run_lock(tmp_path / "out"):
        pass
    assert (tmp_path / "mine").read_text() == "precious"
