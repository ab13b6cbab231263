"""The disk without which a run cannot end: refused before any work, like memory (least.py).

the checkpoint        every weight in the bits that its format stores at least
block inputs          those of one stream, as far as they do not stay in memory; for a pass of
                      gradients those of every block and the last one's output
"""

from math import prod
from pathlib import Path

from q2n.data.windows import TokenWindows
from q2n.disk.space import require_space
from q2n.formats.format import Format
from q2n.models.opened import OpenedModel


def require_disk(
    place: Path,
    opened: OpenedModel,
    format: Format,
    windows: TokenWindows | None,
    in_memory: float,
    *,
    takes_gradients: bool,
) -> None:
    """Refuse a disk that is certainly too small.

    Args:
        place: the folder in which the checkpoint's folder will be.
        windows: the calibration text, if there is one.
        in_memory: bytes of block inputs that need no disk.
        takes_gradients: at every layer, before the first block; whatever `in_memory` says.

    Raises:
        InputError: with what is needed and what is free.
    """
    source, targets = opened.source, opened.blocks.targets()
    rest = format.container.kept(source, targets).bits
    weights = sum(prod(target.shape) for target in targets.values())
    least = (rest + weights * format.codec.least_bits(source.dtype)) / 8
    require_space(place, least, "the checkpoint needs at least")
    if windows is not None:
        width = source.config.get_text_config().hidden_size
        inputs = 1.0 * windows.tokens.numel() * width * source.dtype.itemsize
        if takes_gradients:
            inputs, in_memory = inputs * (len(opened.blocks) + 1), 0.0
        require_space(place, inputs - in_memory, "block inputs on disk need at least")
