"""A store whose blocks are not the model's is refused, though every checksum holds."""

import pytest
from tiny import tiny_model

from q2n.errors import ResumeError
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.models.targets import LayerFilter
from q2n.pipeline.facts import BlockFacts
from q2n.pipeline.finished import check_finished
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore

LAYERS = 2


@pytest.fixture
def model():
    return BlockwiseModel(
        open_source(tiny_model(layers=LAYERS)), layers=LayerFilter(ignore=("k_proj",))
    )


@pytest.fixture
def store(tmp_path, model):
    """A run with all its blocks."""
    store = RunStore(tmp_path / "run")
    store.start({}, {}, resume=False)
    SequentialLoop(model, RTN(bits=3), store, LoopOptions()).run(None)
    return store


def written_again(store, change, index=1, block="model.layers.1"):
    """A block with other layers under a checksum that holds."""
    layers = store.read_block(1)
    change(layers)
    store.write_block(index, layers, BlockFacts(block=block))


def test_the_blocks_of_the_model_pass(store, model):
    check_finished(store, model)


def test_a_missing_layer_is_named(store, model):
    name = "model.layers.1.mlp.up_proj"
    written_again(store, lambda layers: layers.pop(name))
    with pytest.raises(ResumeError, match=f"{name} is missing"):
        check_finished(store, model)
    layers = store.read_block(1)
    store.write_block(1, layers, BlockFacts(block="model.layers.1", never_called=(name,)))
    check_finished(store, model)


def test_a_foreign_layer_is_named(store, model):
    name = "model.layers.1.self_attn.k_proj"
    written_again(store, lambda layers: layers.update({name: layers.popitem()[1]}))
    with pytest.raises(ResumeError, match=r"model\.layers\.1"):
        check_finished(store, model)


def test_a_layer_of_another_shape_is_named(store, model):
    up, other = "model.layers.1.mlp.up_proj", "model.layers.0.mlp.down_proj"
    written_again(store, lambda layers: layers.update({up: store.read_block(0)[other]}))
    with pytest.raises(ResumeError, match=r"up_proj has shape \(64, 96\), not \(96, 64\)"):
        check_finished(store, model)


@pytest.mark.parametrize(("index", "block"), [(2, "model.layers.2"), (1, "model.layers.0")])
def test_a_block_that_the_model_lacks_there_is_named(store, model, index, block):
    written_again(store, lambda layers: None, index, block)
    with pytest.raises(ResumeError, match=f"{block} as number {index}"):
        check_finished(store, model)


def test_nothing_finished_passes(tmp_path, model):
    check_finished(RunStore(tmp_path), model)
