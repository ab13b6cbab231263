"""What the pass of gradients before output feedback holds, keeps and takes
(pipeline/output_gradients.py)."""

from q2n.planning.load import Load
from q2n.planning.memory import DOUBLE, FLOAT, Held, MemoryOfStages, most
from q2n.planning.shapes import ModelShapes, Number

PASSES = 3
"""Through each block: forward, and once more forward and back."""


def held(memory: MemoryOfStages) -> Held:
    """While gradients go through the blocks: inputs of all blocks are on disk, gradients of one
    where the run keeps its block inputs."""
    run, shapes, block = memory.run, memory.shapes, memory.block
    slopes = memory.of_one_rank().inputs(run.gradient_tokens * FLOAT // shapes.itemsize, streams=1)
    passing = 3 * block.most.at(run.length, run.length) + DOUBLE * max(
        x.output_moments for x in shapes.blocks
    )
    through = memory.device(block.bytes + passing)
    return memory.always + slopes + most(through, memory.drawing())


def operations(shapes: ModelShapes, run: Load, one_pass: Number, triangle: float) -> Number:
    """Of the passes, the head's among them, and the sums.

    Args:
        one_pass: of the text that gradients are taken of, through all blocks.
        triangle: the share of a symmetric product that is computed.
    """
    head = 2 * PASSES * shapes.words * shapes.hidden * run.gradient_tokens
    summed = 2 * triangle * run.gradient_tokens * sum(x.output_products for x in shapes.blocks)
    return PASSES * one_pass + head + summed
