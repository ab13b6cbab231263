"""Ways to open a model for a measurement: all of it in memory, or one block at a time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from transformers import PreTrainedModel

from q2n.data.windows import TokenWindows
from q2n.evaluation.block_by_block import BlockByBlock
from q2n.evaluation.body import Body, Whole, evaluating
from q2n.linalg.forward_products import forward_products
from q2n.logging import Bar
from q2n.models.blocks import BlockwiseModel
from q2n.pipeline.activations import Place

OpenBody = Callable[[TokenWindows, Bar], AbstractContextManager[Body]]
"""Opens a model when its turn comes; the bar says how far its blocks are."""
Disturb = Callable[[PreTrainedModel], AbstractContextManager[None]]


def whole(load: Callable[[], PreTrainedModel], disturb: Disturb | None = None) -> OpenBody:
    """All of the model; it runs within `disturb`, if there is one."""
    return partial(_whole, load, disturb)


def one_block_at_a_time(
    load: Callable[[], BlockwiseModel], place: Place = "cpu", limit: float | None = None
) -> OpenBody:
    """A block of the model, and the states of all windows: on the device, in main memory or on
    disk, where those above `limit` GiB lie too."""
    return partial(_one_block_at_a_time, load, place, limit)


@contextmanager
def _whole(
    load: Callable[[], PreTrainedModel], disturb: Disturb | None, windows: TokenWindows, _: Bar
) -> Iterator[Body]:
    model = load()
    with evaluating(model), nullcontext() if disturb is None else disturb(model):
        yield Whole(model, windows)


@contextmanager
def _one_block_at_a_time(
    load: Callable[[], BlockwiseModel],
    place: Place,
    limit: float | None,
    windows: TokenWindows,
    bar: Bar,
) -> Iterator[Body]:
    blocks = load()
    with forward_products(blocks.device):
        yield BlockByBlock(
            blocks,
            windows,
            place=place,
            limit=limit,
            progress=lambda block: bar.detail(f"block {block + 1} of {len(blocks)}"),
        )
