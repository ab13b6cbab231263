"""The refit of the whole model as a stage: stored, done once, the same after a crash."""

import pytest
import torch
from tiny import tiny_model

from q2n.data.windows import TokenWindows
from q2n.logging import Reporter
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.pipeline.whole_model import refit_stored
from q2n.refit.block import BlockRefit
from q2n.refit.model import ModelRefit
from q2n.refit.tuner import Rates

pytestmark = pytest.mark.slow


RATES = Rates(scale=0.01, norm=0.01)


def windows() -> TokenWindows:
    tokens = torch.randint(3, 128, (8, 16), generator=torch.Generator().manual_seed(3))
    return TokenWindows(tokens=tokens, label="random tokens")


def quantized(folder, architecture="llama", refit=None) -> RunStore:
    """A store with the finished blocks of a tiny model."""
    store = RunStore(folder)
    store.start({}, {}, resume=False)
    blocks = BlockwiseModel(open_source(tiny_model(architecture, layers=2)))
    loop = SequentialLoop(blocks, RTN(bits=2), store, LoopOptions(), refit=refit)
    loop.run(windows())
    return store


def refit(store, architecture="llama", *, model=None, steps=4, rates=RATES) -> RunStore:
    refit_stored(
        store,
        ModelRefit(steps=steps, rates=rates),
        model or (lambda: tiny_model(architecture, layers=2)),
        windows(),
        reporter=Reporter(),
    )
    return store.another("refit")


def tensors_of(folder, stem="refit"):
    return {file.name: file.read_bytes() for file in sorted(folder.glob(f"{stem}-*.safetensors"))}


def no_model():
    raise AssertionError("the model is not needed")


def test_layers_and_norms_are_tuned_blocks_stay(tmp_path):
    store = quantized(tmp_path)
    before = tensors_of(tmp_path, "block")
    result = refit(store)
    assert tensors_of(tmp_path, "block") == before and len(tensors_of(tmp_path)) == 2
    old, new = store.layers(), result.layers()
    assert list(old) == list(new)
    for name, layer in old.items():
        assert torch.equal(new[name].codes, layer.codes)
        assert not torch.equal(new[name].scale, layer.scale)
        assert new[name].record == layer.record
    original = tiny_model(layers=2)
    assert len(result.norm_weights()) == 5 and store.norm_weights() == {}
    for name, norm in result.norm_weights().items():
        assert not torch.equal(norm, original.get_parameter(name))


@pytest.mark.parametrize(
    ("architecture", "last"),
    [("llama", "model.norm.weight"), ("opt", "model.decoder.final_layer_norm.weight")],
)
def test_norm_weights_lie_with_their_block(tmp_path, architecture, last):
    result = refit(quantized(tmp_path, architecture), architecture, steps=1)
    blocks = result.finished()
    first = set(result.read_norm_weights(0))
    assert first and all(name.startswith(f"{blocks[0]['block']}.") for name in first)
    others = {
        name
        for name in result.read_norm_weights(1)
        if not name.startswith(f"{blocks[1]['block']}.")
    }
    assert others == {last}
    assert len(result.read_norm_weights(1)) == len(first) + 1


def test_ten_blocks_and_more_keep_their_own(tmp_path):
    """Block 1's name begins that of block 10."""
    store = RunStore(tmp_path)
    store.start({}, {}, resume=False)
    blocks = BlockwiseModel(open_source(tiny_model(layers=11)))
    SequentialLoop(blocks, RTN(bits=2), store, LoopOptions()).run(None)
    result = refit(store, model=lambda: tiny_model(layers=11), steps=1)
    assert [len(result.read_norm_weights(index)) for index in range(11)] == [2] * 10 + [3]
    assert all(name.startswith("model.layers.1.") for name in result.read_norm_weights(1))


def test_a_second_call_does_nothing(tmp_path):
    store = quantized(tmp_path)
    refit(store)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    refit(store, model=no_model)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("written", [0, 1])
def test_interrupted_writing_is_repeated_to_the_same_bytes(tmp_path, written):
    store = quantized(tmp_path)
    refit(store)
    whole = tensors_of(tmp_path)
    for index in range(written, 2):
        (tmp_path / f"refit-{index:05d}.json").unlink()
    (tmp_path / "refit-00001.safetensors").write_bytes(b"half")
    result = refit(store)
    assert tensors_of(tmp_path) == whole and len(result.finished()) == 2
    assert len(result.layers()["model.layers.1.mlp.up_proj"].codes) == 96


def test_a_crash_between_two_blocks_is_made_good(tmp_path, monkeypatch):
    whole, broken = quantized(tmp_path / "whole"), quantized(tmp_path / "broken")
    refit(whole)
    plain = RunStore.write_block

    def write_once(self, index, *args):
        if index == 1:
            raise KeyboardInterrupt
        plain(self, index, *args)

    with monkeypatch.context() as patched:
        patched.setattr(RunStore, "write_block", write_once)
        with pytest.raises(KeyboardInterrupt):
            refit(broken)
    assert len(broken.another("refit").finished()) == 1
    refit(broken)
    assert tensors_of(tmp_path / "broken") == tensors_of(tmp_path / "whole")


def test_facts_stay_and_time_is_added(tmp_path):
    store = quantized(tmp_path)
    result = refit(store)
    for old, new in zip(store.finished(), result.finished(), strict=True):
        assert new["block"] == old["block"] and new["never_called"] == old["never_called"]
        assert new["seconds"] > old["seconds"]
    first, last = result.finished()[0]["model_refit_loss"]
    assert 0 < first != last


def test_it_starts_from_refitted_norm_weights(tmp_path):
    """With rates next to nothing the norms are those that each block was left with."""
    store = quantized(tmp_path, refit=BlockRefit(steps=6, rates=RATES))
    before = store.norm_weights()
    result = refit(store, rates=Rates(scale=1e-12, norm=1e-12))
    assert len(before) == 4
    for name, norm in before.items():
        assert torch.equal(result.norm_weights()[name], norm)
    old, new = store.layers(), result.layers()
    assert all(torch.equal(new[name].scale, layer.scale) for name, layer in old.items())


def test_what_has_risen_on_other_windows_is_given_up(tmp_path):
    store = quantized(tmp_path)
    kept = refit(store, rates=Rates(scale=8.0, norm=8.0))
    before, after = kept.finished()[0]["model_refit_loss"]
    assert not after <= before
    old, new = store.layers(), kept.layers()
    assert all(torch.equal(new[name].scale, layer.scale) for name, layer in old.items())
