"""What a run leaves on disk, and what it refuses to go on with."""

import pytest
import torch

from q2n.disk.folders import MARKER
from q2n.errors import InputError, ResumeError
from q2n.method import LayerProblem
from q2n.methods.rtn import RTN
from q2n.pipeline.facts import BlockFacts
from q2n.pipeline.store import RunStore


def store_in(folder) -> RunStore:
    return RunStore(folder)


def some_layers(seed: int = 0):
    torch.manual_seed(seed)
    weights = {"a.q": torch.randn(8, 12), "a.k": torch.randn(4, 12)}
    return {
        name: RTN(bits=3).quantize(LayerProblem(name=name, weight=weight, statistics=None))
        for name, weight in weights.items()
    }


def test_layers_come_back_as_they_were(tmp_path):
    store, layers = store_in(tmp_path), some_layers()
    store.start({"bits": 3}, {}, resume=False)
    store.write_block(0, layers, BlockFacts(block="a", seconds=1.0))
    read = store_in(tmp_path).layers()
    assert list(read) == list(layers)
    for name, layer in layers.items():
        assert torch.equal(read[name].dequantize(), layer.dequantize())
        assert read[name].metadata() == layer.metadata()


FACTS = BlockFacts(block="a")


def test_norm_weights_come_back_beside_the_layers(tmp_path):
    store, layers = store_in(tmp_path), some_layers()
    store.start({}, {}, resume=False)
    norms = {"a.norm.weight": torch.randn(12).bfloat16(), "a.q_norm.weight": torch.randn(4)}
    store.write_block(0, layers, FACTS, norms)
    store.write_block(1, {}, FACTS)
    store.write_block(2, {}, FACTS, {"c.norm.weight": torch.ones(3)})
    read = store_in(tmp_path)
    assert list(read.read_block(0)) == list(layers)
    assert read.read_norm_weights(1) == {} and list(read.read_norm_weights(2)) == ["c.norm.weight"]
    for name, norm in norms.items():
        assert torch.equal(read.read_norm_weights(0)[name], norm)
        assert read.read_norm_weights(0)[name].dtype == norm.dtype
    assert list(read.norm_weights()) == [*norms, "c.norm.weight"]


def test_a_layer_and_a_norm_may_share_names(tmp_path):
    store, layers = store_in(tmp_path), some_layers()
    store.start({}, {}, resume=False)
    store.write_block(0, layers, FACTS, {"a.q": torch.ones(2)})
    assert torch.equal(store.read_block(0)["a.q"].dequantize(), layers["a.q"].dequantize())
    assert torch.equal(store.read_norm_weights(0)["a.q"], torch.ones(2))


def test_another_stem_is_another_set_of_blocks(tmp_path):
    store = store_in(tmp_path)
    store.start({}, {}, resume=False)
    store.write_block(0, some_layers(), FACTS)
    other = store.another("refit")
    assert other.finished() == []
    other.write_block(0, some_layers(seed=1), FACTS, {"n": torch.ones(2)})
    assert len(store.finished()) == len(other.finished()) == 1
    assert store.norm_weights() == {} and list(other.norm_weights()) == ["n"]
    codes = [which.layers()["a.q"].codes for which in (store, other)]
    assert not torch.equal(*codes)
    assert {"block-00000.json", "refit-00000.json"} <= {file.name for file in tmp_path.iterdir()}


def test_a_run_begun_anew_forgets_what_was_refitted(tmp_path):
    begun(tmp_path, {"bits": 3})
    store_in(tmp_path).another("refit").write_block(0, some_layers(), FACTS)
    (tmp_path / "block-00000.json").unlink()
    assert store_in(tmp_path).start({"bits": 2}, {}, resume=True) == 0
    assert store_in(tmp_path).another("refit").finished() == []


def begun(folder, fingerprint):
    """A run with one finished block."""
    store_in(folder).start(fingerprint, {"model": "m"}, resume=False)
    store_in(folder).write_block(0, some_layers(), FACTS)


def test_a_run_without_finished_blocks_starts_again(tmp_path):
    store_in(tmp_path).start({"bits": 3}, {}, resume=False)
    assert store_in(tmp_path).start({"bits": 2}, {}, resume=False) == 0
    assert store_in(tmp_path).started_with().fingerprint == {"bits": 2}


def test_an_output_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output"):
        store_in(tmp_path / "file" / "out").start({}, {}, resume=False)


def test_a_partial_run_is_not_overwritten(tmp_path):
    begun(tmp_path, {"bits": 3})
    with pytest.raises(InputError, match="--resume"):
        store_in(tmp_path).start({"bits": 3}, {}, resume=False)


def test_a_difference_is_named(tmp_path):
    begun(tmp_path, {"bits": 3, "model_sha256": "aa"})
    with pytest.raises(ResumeError, match="bits was 3, is 2"):
        store_in(tmp_path).start({"bits": 2, "model_sha256": "aa"}, {}, resume=True)
    with pytest.raises(ResumeError, match="model_sha256"):
        store_in(tmp_path).start({"bits": 3, "model_sha256": "bb"}, {}, resume=True)


def test_a_gap_is_named_and_its_end_goes_on(tmp_path):
    """Nothing that is finished is thrown away without a word."""
    store = store_in(tmp_path)
    store.start({}, {}, resume=False)
    for index in range(3):
        store.write_block(index, some_layers(), BlockFacts(block="a"))
    (tmp_path / "block-00001.json").unlink()
    with pytest.raises(ResumeError, match=r"block-00001\.json is missing.*delete block-00001"):
        store_in(tmp_path).start({}, {}, resume=True)
    (tmp_path / "block-00002.json").unlink()
    assert store_in(tmp_path).start({}, {}, resume=True) == 1


@pytest.mark.parametrize("stem", ["block", "refit"])
def test_a_damaged_block_is_named(tmp_path, stem):
    store = store_in(tmp_path)
    store.start({}, {}, resume=False)
    store = store.another(stem)
    store.write_block(0, some_layers(), FACTS, {"a.norm.weight": torch.ones(3)})
    file = tmp_path / f"{stem}-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    advice = rf"delete {stem}-00000\.\* .*{'and all refit' if stem == 'block' else 'name, then'}"
    for read in (store.read_block, store.read_norm_weights):
        with pytest.raises(ResumeError, match=advice):
            read(0)
    with pytest.raises(ResumeError, match=f"{stem}-00000"):
        store.norm_weights()
    file.unlink()
    with pytest.raises(ResumeError, match=f"{stem}-00000"):
        store.read_norm_weights(0)


def test_a_full_disk_leaves_no_half_written_file(tmp_path, monkeypatch):
    store = store_in(tmp_path)
    store.start({}, {}, resume=False)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("q2n.pipeline.block_files.os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        store.write_block(0, some_layers(), BlockFacts(block="a"))
    assert sorted(file.name for file in tmp_path.iterdir()) == [MARKER, "run.json"]


@pytest.mark.parametrize("name", ["run.json", "block-00000.json", "block-00000.safetensors"])
@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "gone", "folder", "other JSON"])
def test_every_damage_is_named_before_a_run_goes_on(tmp_path, name, damage):
    begun(tmp_path, {"bits": 3})
    store_in(tmp_path).write_block(1, some_layers(), FACTS)
    file = tmp_path / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "gone":
        file.write_bytes(
            {"flipped": data, "short": data[:-3], "empty": b"", "other JSON": b"{}"}[damage]
        )
    with pytest.raises(ResumeError, match=rf"{name} .*; delete") as failure:
        store_in(tmp_path).start({"bits": 3}, {}, resume=True)
    assert len(str(failure.value).splitlines()) == 1
    assert file.exists() == (damage != "gone")


def test_a_block_of_another_run_or_place_is_refused(tmp_path):
    begun(tmp_path / "one", {"bits": 3})
    begun(tmp_path / "other", {"bits": 2})
    for name in ("block-00000.json", "block-00000.safetensors"):
        (tmp_path / "one" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ResumeError, match=r"block-00000\.json belongs to another run"):
        store_in(tmp_path / "one").start({"bits": 3}, {}, resume=True)
    for name in ("block-00000.json", "block-00000.safetensors"):
        (tmp_path / "other" / name.replace("0.", "1.")).write_bytes(
            (tmp_path / "other" / name).read_bytes()
        )
    with pytest.raises(ResumeError, match=r"block-00001\.json belongs to another run or block"):
        store_in(tmp_path / "other").start({"bits": 2}, {}, resume=True)


def test_damaged_tensors_of_the_refit_are_found_at_the_start(tmp_path):
    begun(tmp_path, {})
    store_in(tmp_path).another("refit").write_block(0, some_layers(), FACTS)
    (tmp_path / "refit-00000.safetensors").write_bytes(b"")
    with pytest.raises(ResumeError, match="refit-00000.safetensors is damaged"):
        store_in(tmp_path).start({}, {}, resume=True)


def test_files_of_others_stay_and_are_named(tmp_path):
    folder = tmp_path / "run"
    store = store_in(folder)
    store.start({}, {}, resume=False)
    for name in ("notes-2.json", "block-1.json", "activations/mine.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("precious")
    store_in(folder).start({}, {}, resume=False)  # begun anew
    store.write_block(0, some_layers(), FACTS)
    remaining = store.remove()
    assert remaining == ["activations/mine.safetensors", "block-1.json", "notes-2.json", MARKER]
    assert sorted(str(x.relative_to(folder)) for x in folder.rglob("*") if x.is_file()) == sorted(
        remaining
    )


def test_a_folder_of_somebody_else_is_neither_taken_nor_removed(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    store = store_in(tmp_path)
    with pytest.raises(InputError, match="in the way"):
        store.start({}, {}, resume=True)
    assert store.remove() == [] and [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
