"""The refit of the whole model as a stage of a run: from stored blocks to stored blocks.

Its result is stored beside the blocks it started from, under a stem of its own, so that a
run which is interrupted before all of it is written starts this stage again from the same
blocks and comes to the same result.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from q2n.data.windows import TokenWindows
from q2n.logging import Reporter
from q2n.pipeline.block_files import REFIT
from q2n.pipeline.facts import BlockFacts
from q2n.pipeline.store import RunStore
from q2n.refit.model import ModelRefit


def refitted(store: RunStore) -> RunStore:
    """Where the result of this stage lies."""
    return store.another(REFIT)


def refit_stored(
    store: RunStore,
    refit: ModelRefit,
    model: Callable[[], PreTrainedModel],
    windows: TokenWindows,
    *,
    reporter: Reporter,
) -> None:
    """Tune the stored layers together and store them as `refitted(store)`, unless that has
    been done.

    Args:
        model: loads the full-precision model; its norms are changed.
        windows: text that the layers were not fitted to, `refit.windows` of them.

    Raises:
        NumericalError: the loss is not finite.
    """
    blocks, result = store.finished(), refitted(store)
    if len(result.finished()) == len(blocks):
        return
    start = time.perf_counter()
    with reporter.bar("refit", refit.steps) as bar:
        tuned = refit(
            model(),
            dict(store.layers()),
            store.norm_weights(),
            windows.tokens,
            progress=bar.advance,
        )
    share = (time.perf_counter() - start) / len(blocks)
    kept = {**store.norm_weights(), **tuned.norm_weights}
    norms = _by_block(kept, [values["block"] for values in blocks])
    for index, values in enumerate(blocks):
        before = BlockFacts.from_json(values)
        facts = replace(before, seconds=before.seconds + share)
        if index == 0:
            facts = replace(facts, model_refit_loss=tuned.change)
        layers = {name: tuned.layers[name] for name in values["layers"]}
        result.write_block(index, layers, facts, norms[index])


def _by_block(
    weights: Mapping[str, Float[Tensor, "..."]], blocks: list[str]
) -> list[dict[str, Float[Tensor, "..."]]]:
    """Each block's own norm weights; what belongs to none (the last norm) goes to the last one."""
    owner = {
        name: next(
            (i for i, block in enumerate(blocks) if name.startswith(f"{block}.")), len(blocks) - 1
        )
        for name in weights
    }
    return [
        {name: weight for name, weight in weights.items() if owner[name] == i}
        for i in range(len(blocks))
    ]
