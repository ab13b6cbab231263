"""A checkpoint that was just written beside the model that it was made of, one block in memory at a
time: what could be quantized can be measured."""

from pathlib import Path

from q2n.data.windows import TokenWindows
from q2n.evaluation.compare import compare_models
from q2n.evaluation.opening import OpenBody, one_block_at_a_time
from q2n.evaluation.results import Comparison
from q2n.formats.load import open_checkpoint
from q2n.logging import Reporter
from q2n.models.blocks import BlockwiseModel
from q2n.models.model_source import ModelSource
from q2n.models.opened import OpenedModel
from q2n.pipeline.options import LoopOptions


def compare_written(
    folder: Path,
    opened: OpenedModel,
    windows: TokenWindows,
    options: LoopOptions,
    *,
    divergence: bool,
    reporter: Reporter,
) -> Comparison:
    """Perplexities and, with `divergence`, the fidelity.

    Args:
        folder: the checkpoint.
        options: those of the quantization say how many windows run together and where states lie.

    Raises:
        InputError: the windows do not fit.
        NumericalError: logits are not finite.
    """

    def body(source: ModelSource) -> OpenBody:
        blocks = BlockwiseModel(source, opened.blocks.device)
        return one_block_at_a_time(lambda: blocks, options.activations, options.activations_limit)

    checkpoint = open_checkpoint(
        folder, opened.source.dtype, trust_remote_code=opened.source.trust_remote_code
    )
    return compare_models(
        body(opened.original),
        body(checkpoint),
        windows,
        divergence=divergence,
        batch_size=options.batch_size,
        reporter=reporter,
    )
