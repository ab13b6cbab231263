"""What goes wrong around a run: somebody else's folders, an end in the middle, damaged records."""

import json
import os
from shutil import copytree, rmtree

import pytest
from tiny import save_tiny, tiny_text
from whole_way import files_of, quantize

import q2n
from q2n.disk.folders import MARKER, make_working_folder
from q2n.disk.lock import run_lock
from q2n.errors import InputError, Q2NError, ResumeError
from q2n.logging import Reporter
from q2n.pipeline.store import RunStore

pytestmark = pytest.mark.slow

RTN = {"method": "rtn", "output_scales": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny model, its text, and a finished checkpoint with the working folder that it had."""
    place = tmp_path_factory.mktemp("place")
    save_tiny(place / "model", layers=2)
    (place / "text.txt").write_text(tiny_text())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunStore, "remove", lambda self: [])  # as if killed before it
        quantize(place, "killed", **RTN)
    return place


@pytest.fixture
def place(made, tmp_path):
    """The same in a folder of its own; the run there is as it was when it was killed."""
    return copytree(made, tmp_path / "place")


def written(folder):
    """All files but those that name the model's place, which the copies of it do not share."""
    return {k: x for k, x in files_of(folder).items() if k not in ("README.md", "q2n.json")}


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_run_leaves_only_the_checkpoint(place):
    quantize(place, "out", **RTN)
    assert names(place / "out") == ["checkpoint"]


def test_a_run_that_was_killed_after_the_rename_is_complete(place):
    before = files_of(place / "killed" / "checkpoint")
    with pytest.raises(InputError, match=r"exists.*checkpoint\.partial is left.*--resume"):
        quantize(place, "killed", **RTN)
    done = quantize(place, "killed", resume=True, **RTN)
    assert names(place / "killed") == ["checkpoint"]
    assert files_of(place / "killed" / "checkpoint") == before
    fresh = quantize(place, "again", **RTN)
    same = {**fresh.record, "settings": done.record["settings"]}
    assert done.record == same and done.timings.keys() == fresh.timings.keys()
    for what in ("bytes_before", "bytes_after", "comparison"):
        assert getattr(done, what) == getattr(fresh, what)
    assert quantize(place, "killed", resume=True, **RTN).record == done.record


def test_a_complete_run_of_other_settings_is_not_taken_for_this_one(place):
    with pytest.raises(InputError, match="exists and was quantized otherwise: bits was 3, is 2"):
        quantize(place, "killed", resume=True, **RTN, bits=2)
    assert names(place / "killed") == ["checkpoint", "checkpoint.partial"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", None),
        ("model.safetensors", "xx"),
        ("q2n_timings.json", "{}"),
        ("q2n.json", "{"),
    ],
)
def test_a_complete_checkpoint_that_is_damaged_since_is_refused(place, file, content):
    damaged = place / "killed" / "checkpoint" / file
    damaged.unlink() if content is None else damaged.write_text(content)
    with pytest.raises(InputError, match=f"{file}.*") as refused:
        quantize(place, "killed", resume=True, **RTN)
    assert "\n" not in str(refused.value)


def test_a_complete_checkpoint_says_that_it_was_not_measured(place, capsys):
    (place / "other.txt").write_text(tiny_text() * 2)
    measured = {"ppl": str(place / "text.txt"), "ppl_windows": 2}
    quantize(place, "out", **RTN, **measured)
    again = {"resume": True, "reporter": Reporter("bars"), **RTN}
    quantize(place, "out", **again, **measured)
    assert "was not measured" not in capsys.readouterr().err
    quantize(place, "out", **again, ppl=str(place / "other.txt"))
    assert "It was not measured on" in capsys.readouterr().err.replace("\n", " ")
    quantize(place, "killed", **again, **measured)
    assert "It was not measured on" in capsys.readouterr().err.replace("\n", " ")


def test_a_working_folder_that_is_half_removed_does_not_matter(place):
    partial = place / "killed" / "checkpoint.partial"
    (partial / "run.json").unlink()
    quantize(place, "killed", resume=True, **RTN)
    assert names(place / "killed") == ["checkpoint"]


def test_the_work_of_another_run_beside_a_complete_one_stays(place):
    partial = place / "killed" / "checkpoint.partial"
    (place / "killed" / "checkpoint").rename(place / "finished")
    rmtree(partial)
    RunStore(partial).start({"bits": 2}, {}, resume=False)
    (place / "finished").rename(place / "killed" / "checkpoint")
    quantize(place, "killed", resume=True, **RTN)
    assert RunStore(partial).started_with().fingerprint == {"bits": 2}


def test_two_runs_of_one_output(place):
    with run_lock(place / "out" / "checkpoint"):
        with pytest.raises(InputError, match=f"process {os.getpid()} .*choose another"):
            quantize(place, "out", **RTN)
    assert not (place / "out").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_a_working_folder_of_somebody_else(place, resume):
    mine = place / "out" / "checkpoint.partial"
    mine.mkdir(parents=True)
    (mine / "block-00000.json").write_text("{}")
    with pytest.raises(InputError, match="in the way"):
        quantize(place, "out", resume=resume, **RTN)
    assert names(place / "out") == [mine.name] and names(mine) == ["block-00000.json"]


def test_a_linked_working_folder(place):
    make_working_folder(place / "elsewhere")
    (place / "out").mkdir()
    (place / "out" / "checkpoint.partial").symlink_to(place / "elsewhere")
    with pytest.raises(InputError, match="in the way"):
        quantize(place, "out", **RTN)
    assert names(place / "elsewhere") == [MARKER]


def test_a_file_of_the_user_in_our_folder_stays(place, monkeypatch):
    """Everything else goes, and a note says so."""
    partial = place / "out" / "checkpoint.partial"
    plain, notes = RunStore.write_block, []

    def with_a_file(self, *block):
        (partial / "mine.json").write_text("precious")
        plain(self, *block)

    monkeypatch.setattr(RunStore, "write_block", with_a_file)
    monkeypatch.setattr(Reporter, "note", lambda self, text: notes.append(text))
    quantize(place, "out", **RTN)
    assert names(partial) == ["mine.json", MARKER]
    assert any(f"{partial} stays" in note and "mine.json" in note for note in notes)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, InputError, RuntimeError])
@pytest.mark.parametrize("finished", [0, 1])
def test_an_end_in_the_middle_leaves_what_goes_on_or_nothing(place, monkeypatch, failure, finished):
    plain = RunStore.write_block

    def fail(self, index, *block):
        if index == finished:
            raise failure
        plain(self, index, *block)

    with monkeypatch.context() as patched:
        patched.setattr(RunStore, "write_block", fail)
        with pytest.raises(failure):
            quantize(place, "out", **RTN)
    assert (place / "out").exists() == bool(finished)
    quantize(place, "out", resume=True, **RTN)
    assert written(place / "out" / "checkpoint") == written(place / "killed" / "checkpoint")


def test_a_stale_checkpoint_and_stale_activations_are_replaced(place):
    partial = place / "out" / "checkpoint.partial"
    make_working_folder(partial)
    for name in ("checkpoint/shard-00000.safetensors", "activations/full/batch-00009.safetensors"):
        (partial / name).parent.mkdir(parents=True)
        (partial / name).write_bytes(b"half")
    quantize(place, "out", method="gptq", activations="disk")
    assert names(place / "out") == ["checkpoint"]


def unfinished(place):
    """The run was killed before its checkpoint was there."""
    rmtree(place / "killed" / "checkpoint")
    return place / "killed" / "checkpoint.partial"


def test_layers_that_are_not_the_models_are_refused(place):
    store = RunStore(unfinished(place))
    layers = store.read_block(0)
    layers.pop("model.layers.0.mlp.up_proj")
    from q2n.pipeline.facts import BlockFacts

    store.write_block(0, layers, BlockFacts.from_json(store.finished()[0]))
    with pytest.raises(ResumeError, match="up_proj is missing"):
        quantize(place, "killed", resume=True, **RTN)
    assert len(store.finished()) == 2


@pytest.mark.parametrize("name", ["run.json", "block-00001.json"])
def test_inspect_names_a_damaged_store(place, name):
    partial = unfinished(place)
    assert q2n.inspect(partial)["finished_blocks"] == 2
    (partial / name).write_text("{")
    for folder in (partial, place / "killed" / "checkpoint"):
        with pytest.raises(Q2NError, match=f"{name} is damaged"):
            q2n.inspect(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: "{",
        lambda record: "[]",
        lambda record: "[" * 100_000,
        lambda record: b"\xff\xfe\x00",
        lambda record: {},
        lambda record: {**record, "layers": []},
        lambda record: {**record, "layers": {"a": {"shape": [1], "bits_per_weight": 3}}},
        lambda record: {**record, "layers": {"a": {"shape": ["1", 2], "bits_per_weight": 3}}},
        lambda record: {**record, "layers": {"a": {"shape": [1, 2], "bits_per_weight": "3"}}},
        lambda record: {
            **record,
            "layers": {"a": {"shape": [1, 2], "bits_per_weight": 3, "output_error": "x"}},
        },
        lambda record: {**record, "ignored": 3},
        lambda record: {**record, "notes": [3]},
        lambda record: {**record, "settings": []},
        lambda record: {**record, "perplexity": {"original": {"loss": 3}}},
    ],
)
def test_a_damaged_record_is_named(place, damage):
    file = place / "killed" / "checkpoint" / "q2n.json"
    damaged = damage(json.loads(file.read_text()))
    if isinstance(damaged, dict):
        damaged = json.dumps(damaged)
    file.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    for call in (q2n.inspect, lambda _: quantize(place, "killed", resume=True, **RTN)):
        with pytest.raises(InputError, match=r"q2n\.json is damaged"):
            call(file.parent)


def test_a_disk_that_is_too_small_is_refused_before_the_first_block(place, monkeypatch):
    from q2n.disk import space

    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 20_000}))
    with pytest.raises(InputError, match=r"needs at least 0\.00 GB, and .* has 0\.00 GB free"):
        quantize(place, "out", **RTN)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 150_000}))
    with pytest.raises(InputError, match=r"block inputs on disk need at least"):
        quantize(place, "out", method="gptq", activations="disk", windows=50)
    with pytest.raises(InputError, match=r"block inputs on disk need at least"):
        quantize(place, "out", method="gptq", windows=50, output_feedback=True)
    assert not (place / "out").exists()
