"""The disk without which a run cannot end: refused before any work, like memory (least.py).

the checkpoint        every weight in the bits that its format stores at least
block inputs          those of one stream, as far as they do not stay in memory; for a pass of
                      gradients those of every block and the last one's output
"""

from math import prod
from pathlib import Path

from q2n.config.owners import Plan
from q2n.data.windows import TokenWindows
from q2n.disk.space import require_space
from q2n.models.opened import OpenedModel
from q2n.pipeline.options import LoopOptions


def require_disk(
    place: Path,
    opened: OpenedModel,
    plan: Plan,
    windows: TokenWindows | None,
    options: LoopOptions,
) -> None:
    """Refuse a disk that is certainly too small.

    Args:
        place: the folder in which the checkpoint's folder will be.
        windows: the calibration text, if there is one.

    Raises:
        InputError: with what is needed and what is free.
    """
    source, targets = opened.source, opened.blocks.targets()
    rest = plan.format.container.kept(source, targets).bits
    weights = sum(prod(target.shape) for target in targets.values())
    least = (rest + weights * plan.format.codec.least_bits(source.dtype)) / 8
    require_space(place, least, "the checkpoint needs at least")
    if windows is not None:
        width = float(source.config.get_text_config().hidden_size)
        one = windows.length * width * source.dtype.itemsize
        of_all = (len(opened.blocks) + 1) * one * _gradient_windows(plan, windows, options)
        inputs = max(len(windows) * one - options.bytes_in_memory, of_all)
        require_space(place, inputs, "block inputs on disk need at least")


def _gradient_windows(plan: Plan, windows: TokenWindows, options: LoopOptions) -> int:
    """Whose gradients are taken before the first block."""
    if plan.allocate is not None:
        return len(windows)
    read = plan.method.reads_gradients
    return options.gradient_windows(len(windows), windows.length) if read else 0
