"""One run of a block on a short probe, watched by hooks that are gone after it."""

from collections.abc import Sequence

from torch import nn
from torch.utils.hooks import RemovableHandle

from q2n.models.calls import BlockInput, BlockOutput
from q2n.models.running import running


def run_hooked(
    block: nn.Module, probe: BlockInput, hooks: Sequence[RemovableHandle]
) -> BlockOutput:
    """What the block makes of the probe; the hooks, which stand already, are removed.

    Raises:
        InputError: as `running`.
    """
    try:
        with running(type(block).__name__):
            return probe.run(block)
    finally:
        for hook in hooks:
            hook.remove()
