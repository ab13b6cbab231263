"""A batch on its way through the blocks of a model, one block after another."""

from collections.abc import Iterator

import torch

from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import BlockInput, BlockOutput


@torch.no_grad()
def through_blocks(
    model: BlockwiseModel, tokens: torch.Tensor
) -> Iterator[tuple[BlockInput, BlockOutput]]:
    """What each block is given and what it makes of that."""
    inputs = next(model.record_inputs([tokens]))
    hidden, carried = inputs.hidden, inputs.carried
    for index, call in enumerate(inputs.calls):
        given = BlockInput(hidden, call, carried)
        output = given.run(model.load_block(index))
        yield given, output
        hidden, carried = output.hidden, output.carried
