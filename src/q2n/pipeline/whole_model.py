"""The refit of the whole model as a stage of a run: from stored blocks to stored blocks.

What it finds is stored beside the blocks it started from, under a stem of its own, so that a
run which is interrupted before all of it is written starts this stage again from the same
blocks and comes to the same result.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from q2n.data.windows import TokenWindows
from q2n.logging import Reporter
from q2n.pipeline.store import RunStore
from q2n.refit.model import ModelRefit

STEM = "refit"


def refit_stored(
    store: RunStore,
    refit: ModelRefit,
    model: Callable[[], PreTrainedModel],
    windows: TokenWindows,
    *,
    seed: int,
    reporter: Reporter,
) -> None:
    """Tune the stored layers together and store them as `store.another(STEM)`, unless that has
    been done.

    Args:
        model: loads the full-precision model; its norms are changed.

    Raises:
        NumericalError: the loss is not finite.
    """
    blocks, result = store.finished(), store.another(STEM)
    if len(result.finished()) == len(blocks):
        return
    start = time.perf_counter()
    with reporter.bar("refit", refit.steps) as bar:
        tuned = refit(
            model(),
            dict(store.layers()),
            store.gains(),
            windows.tokens,
            seed=seed,
            progress=bar.advance,
        )
    share = (time.perf_counter() - start) / len(blocks)
    gains = _by_block(tuned.gains, [facts["block"] for facts in blocks])
    for index, facts in enumerate(blocks):
        kept = {key: value for key, value in facts.items() if key not in ("layers", "sha256")}
        kept["seconds"] += share
        layers = {name: tuned.layers[name] for name in facts["layers"]}
        if index == 0:
            kept["model_refit_loss"] = [tuned.losses[0], tuned.losses[-1]]
        result.write_block(index, layers, kept, gains[index])


def _by_block(gains: Mapping[str, Tensor], blocks: list[str]) -> list[dict[str, Any]]:
    """Each block's own gains; what belongs to none (the last norm) goes to the last one."""
    owner = {
        name: next(
            (i for i, block in enumerate(blocks) if name.startswith(f"{block}.")), len(blocks) - 1
        )
        for name in gains
    }
    return [{name: gains[name] for name in gains if owner[name] == i} for i in range(len(blocks))]
