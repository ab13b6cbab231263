"""Kernels must run where nothing can be written, and whatever lies in the cache."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numba
import pytest

import q2n
from q2n.kernels import compiled as room

pytestmark = pytest.mark.slow


AS_NOBODY = [
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    # root's own Python may lie in a folder that others cannot enter: let it read, not write
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
]
RUN_KERNELS = """
import torch
import q2n
from q2n.kernels import compiled, dispatch
from q2n.kernels.rounding_rules import CodebookRule, SplitRule, UniformRule
from q2n.kernels.column_sweep import sweep
from q2n.kernels.trellis_search import TrellisRule
from q2n.linalg import trellis_code

print(q2n.__file__)
print(compiled.cache_folder())
weight, zero = torch.randn(3, 5), torch.zeros(1, 5)
group = torch.zeros(3, dtype=torch.int64)
for rule in (
    UniformRule(zero + 1, zero.to(torch.uint8), group, 7),
    CodebookRule(torch.cat([zero - 1, zero + 1])),
    SplitRule(weight > 0, group, zero, zero + 1, 1, zero, zero + 1, 7),
    TrellisRule(trellis_code.values(4), 4),
):
    sweep(weight, torch.zeros(3, 3), rule, block_size=2)
dispatch.unpack(torch.zeros(3, dtype=torch.int32), 3, 32)
dispatch.weighted_error(weight[None], weight, zero[:, :3] + 1, zero[:, :3], 7)
dispatch.scale_zero_search(weight, weight.abs() + 1, torch.arange(4), 3)
print("done")
"""


@pytest.fixture
def package():
    """A folder with a copy of q2n that anyone may read."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(
            Path(q2n.__file__).parent,
            Path(folder) / "q2n",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield Path(folder)
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o755)


def unprivileged(folder, code, **variables):
    """Python on `folder`, without a home, by a user who may write nowhere in it."""
    kept = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    kept.pop("NUMBA_CACHE_DIR", None)
    user = AS_NOBODY if os.geteuid() == 0 else []
    return subprocess.run(
        [*user, sys.executable, "-c", code],
        env={
            **kept,
            "PYTHONPATH": str(folder),
            "PYTHONWARNINGS": "error::UserWarning",
            **variables,
        },
        cwd=folder,
        capture_output=True,
        text=True,
    )


def can_run(folder):
    return unprivileged(folder, "import torch").returncode == 0


def test_kernels_run_where_nothing_is_writable(package):
    if os.geteuid() == 0 and not (shutil.which("setpriv") and can_run(package)):
        pytest.skip("root cannot become a user who reads this Python and writes nothing")
    done = unprivileged(package, RUN_KERNELS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(package / "q2n" / "__init__.py"), "None", "done"]
    assert not list(package.rglob("*.nb[ci]")) and not (package / "~").exists()


def twice(x):
    return x + x


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache folder of its own."""
    monkeypatch.setattr(room, "cache_folder", lambda: tmp_path)
    return tmp_path


def test_code_is_read_from_the_cache(folder):
    first, second = room.compiled()(twice), room.compiled()(twice)
    assert first(2) == second(2) == 4
    assert len(list(folder.glob("*.nbi"))) == len(list(folder.glob("*.nbc"))) == 1
    assert not first.stats.cache_hits and sum(second.stats.cache_hits.values()) == 1


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", ["empty", "noise", "cut", "class that is gone"])
def test_damaged_files_are_compiled_anew(folder, suffix, damage):
    room.compiled()(twice)(2)
    (file,) = folder.glob(f"*.{suffix}")
    whole = file.read_bytes()
    # an index begins with numba's version, and is read on if that is the same
    gone = pickle.dumps(numba.__version__) + b"cq2n.kernels.column_rounding\nRemoved\n."
    damaged = {"empty": b"", "noise": b"\x07" * 99, "cut": whole[:-9], "class that is gone": gone}
    file.write_bytes(damaged[damage])
    kernel = room.compiled()(twice)
    assert kernel(2) == 4 and not kernel.stats.cache_hits
    again = room.compiled()(twice)
    assert again(2) == 4 and sum(again.stats.cache_hits.values()) == 1


def test_code_for_other_types_is_not_used(folder):
    kernel = room.compiled()(twice)
    kernel(2), kernel(0.5)
    first, second = sorted(folder.glob("*.nbc"))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    kernel = room.compiled()(twice)
    assert kernel(2) == 4 and kernel(0.5) == 1.0 and not kernel.stats.cache_hits


def test_a_full_disk_ends_nothing(folder, monkeypatch):
    kernel = room.compiled()(twice)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: (_ for _ in ()).throw(OSError))
    assert kernel(2) == 4 and not list(folder.iterdir())


def test_the_folder_belongs_to_the_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "chosen"))
    sources = tmp_path / "kernels"
    sources.mkdir()
    (sources / "a.py").write_text("one")
    monkeypatch.setattr(room, "_ROOM", sources)
    names = []
    for text in ("one", "two", "one"):
        (sources / "b.py").write_text(text)
        room._sources_digest.cache_clear()
        names.append(room.cache_folder.__wrapped__())
    room._sources_digest.cache_clear()
    assert names[0] == names[2] != names[1] and names[0].parent == tmp_path / "chosen"
