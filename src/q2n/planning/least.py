"""The memory without which a run cannot end, whatever its settings: refused before any work.

    embeddings and what else stands outside of the blocks
    the largest block, once for each stream
    three matrices [m, m] in float32 of the widest input, for a method that reads statistics

A run needs more (memory.py). What this refuses would certainly fail.
"""

from dataclasses import dataclass
from typing import cast

from torch import Tensor
from transformers import PreTrainedModel

from q2n.errors import InputError
from q2n.models.blocks import BlockwiseModel
from q2n.models.devices import free_bytes

FLOAT = 4
SQUARES = 3


@dataclass(frozen=True)
class Least:
    """Bytes on the device."""

    outside: int
    block: int
    """The largest."""
    streams: int
    """Times that it is there."""
    statistics: int

    @property
    def total(self) -> int:
        return self.outside + self.streams * self.block + self.statistics


def least_of(model: BlockwiseModel, *, statistics: bool, streams: int) -> Least:
    """What the blocks of a model need at least.

    Args:
        statistics: whether the method reads Gram matrices.
        streams: 2 where the full-precision model runs beside the quantized prefix.
    """
    source = model.source
    stored = set(source.names())
    skeleton = source.skeleton()
    head = skeleton.get_output_embeddings()
    sizes = {
        name: x.numel() * source.dtype_of(name).itemsize
        for name, x in skeleton.named_parameters()
        if name in stored and (head is None or x is not head.weight or x is _embeddings(skeleton))
    }
    prefixes = [f"{model.block_name(index)}." for index in range(len(model))]
    blocks = [sum(n for name, n in sizes.items() if name.startswith(x)) for x in prefixes]
    widest = max(target.shape[1] for target in model.targets().values())
    return Least(
        outside=sum(sizes.values()) - sum(blocks),
        block=max(blocks),
        streams=max(1, streams),
        statistics=SQUARES * FLOAT * widest**2 if statistics else 0,
    )


def require_room(model: BlockwiseModel, *, statistics: bool, streams: int) -> None:
    """Refuse a device that is too small for one block.

    Raises:
        InputError: with the numbers, and what would help.
    """
    least, free = least_of(model, statistics=statistics, streams=streams), free_bytes(model.device)
    if least.total <= free:
        return
    raise InputError(
        f"{model.device} has {_size(free)} free, and this run needs at least {_size(least.total)} "
        f"there: {least.streams} x {_size(least.block)} of the largest block, "
        f"{_size(least.outside)} of embeddings, {_size(least.statistics)} of statistics; "
        f"{_help(model, least, free)}"
    )


def _help(model: BlockwiseModel, least: Least, free: float) -> str:
    """The changes of settings with which it would fit, or that there is none."""
    advice = []
    if least.total - (least.streams - 1) * least.block <= free:
        advice.append(
            "leave out --correct, --output-scales full_precision and --refit block, which need "
            "the block twice"
        )
    weights = least.total - least.statistics
    if model.source.dtype.itemsize == 4 and weights / 2 + least.statistics <= free:
        advice.append("run it in 16 bits: --dtype half")
    if model.device.type != "cpu":
        advice.append("use --device cpu")
    return " or ".join(advice) or "it takes a machine with more memory"


def _embeddings(model: PreTrainedModel) -> Tensor:
    return cast(Tensor, model.get_input_embeddings().weight)


def _size(count: int | float) -> str:
    return f"{count / 1e9:.2f} GB"
