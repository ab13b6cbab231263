"""A hub that takes a connection and says nothing is given up on; one that answers is used."""

import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants
from tiny import save_tiny

from q2n import hub
from q2n.data.corpora import load_corpus
from q2n.errors import InputError
from q2n.models.checkpoint_files import resolve_checkpoint


@pytest.fixture
def silent_hub():
    """The system takes the connections; nobody reads them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def asked(monkeypatch, silent_hub):
    """The silent hub is the one that is asked."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", silent_hub)
    monkeypatch.setattr(hub, "PATIENCE", 0.2)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("fetch", [resolve_checkpoint, lambda _: load_corpus("wikitext2", "test")])
def test_a_silent_hub_is_given_up_on(fetch):
    start = time.monotonic()
    with pytest.raises(InputError, match=r"no answer from http://127\.0\.0\.1"):
        fetch("some/model")
    assert time.monotonic() - start < 5


@pytest.mark.usefixtures("asked")
def test_a_network_that_hangs_is_given_up_on(monkeypatch):
    monkeypatch.setattr(hub, "get_session", lambda: time.sleep(30))
    start = time.monotonic()
    assert not hub.hub_answers()
    assert time.monotonic() - start < 5  # far below the 30 s for which it hangs


@pytest.mark.usefixtures("asked")
def test_a_cached_model_needs_no_answer(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("a" * 40)
    assert resolve_checkpoint("some/model") == snapshot


def test_a_name_that_no_model_has_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("q2n.models.checkpoint_files.hub_answers", lambda: pytest.fail("asked"))
    with pytest.raises(InputError, match="HFValidationError"):
        resolve_checkpoint("./folder/that/is/absent")


def test_a_file_in_a_checkpoint_folder_is_not_asked_for(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(InputError, match="is a file; give the folder"):
        resolve_checkpoint(str(file))


class _Refuses(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(503)

    def log_message(self, *_):
        pass


def test_any_answer_is_one(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), _Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        assert hub.hub_answers()
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("needs", ["model", "corpus"])
def test_the_command_gives_up_in_one_line(tmp_path, silent_hub, needs):
    model = "some/model" if needs == "model" else str(save_tiny(tmp_path / "model"))
    options = ["--corpus", "wikitext2", "--length", "16", "--windows", "1"]
    command = [sys.executable, "-m", "q2n.cli.main", "quantize", model, *options]
    environment = {
        **os.environ,
        "HF_ENDPOINT": silent_hub,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
    }
    start = time.monotonic()
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert time.monotonic() - start < 45  # 4 s of patience, and imports on a busy machine
    assert done.returncode == 2
    assert "no answer from" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
