"""A device that is too small for one block."""

from functools import partial

import pytest
from tiny import save_tiny, tiny_model, tiny_text

import q2n
from q2n.errors import InputError
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.planning import least


@pytest.fixture
def with_free(monkeypatch):
    """Sets the free memory of all devices, in bytes."""
    return lambda count: monkeypatch.setattr(least, "free_bytes", lambda _: float(count))


def test_what_is_needed_is_counted():
    model = tiny_model()
    blocks = BlockwiseModel(open_source(model))
    found = least.least_of(blocks, statistics=True, streams=2)
    inside = sum(parameter.nbytes for parameter in model.model.layers[1].parameters())
    assert found.block == inside and found.streams == 2
    assert found.outside == model.model.embed_tokens.weight.nbytes + model.model.norm.weight.nbytes
    assert found.statistics == 3 * 4 * 96**2
    assert found.total == found.outside + 2 * inside + found.statistics


def test_too_small_a_device_is_refused_first(tmp_path, with_free):
    """With numbers and what helps; one that is just large enough is not."""
    save_tiny(tmp_path / "model")
    (tmp_path / "text.txt").write_text(tiny_text())
    needed = least.least_of(
        BlockwiseModel(open_source(tmp_path / "model")), statistics=True, streams=2
    )
    run = partial(
        q2n.quantize,
        tmp_path / "model",
        tmp_path / "out",
        corpus=str(tmp_path / "text.txt"),
        correct=True,
        windows=2,
        length=16,
    )
    with_free(needed.total - 1)
    with pytest.raises(InputError, match=r"2 x 0\.00 GB.*--correct.*--dtype half"):
        run()
    assert not (tmp_path / "out.partial").exists()
    with_free(needed.total)
    assert run().directory.exists()


def test_nothing_helps_where_nothing_does(with_free):
    with_free(10)
    blocks = BlockwiseModel(open_source(tiny_model()))
    with pytest.raises(InputError, match="a machine with more memory"):
        least.require_room(blocks, statistics=False, streams=1)
