"""The block loop on tiny models, and a plain version of it: hooks on the whole model."""

import torch
from transformers.pytorch_utils import Conv1D

from q2n.data.windows import TokenWindows
from q2n.grids.uniform import UniformGrid
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods.gptq import GPTQ
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.rewrite_block import RewriteBlock
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.refit.block import BlockRefit
from q2n.refit.tuner import Rates

REFIT = BlockRefit(steps=4, rates=Rates(scale=0.01, norm=0.01))


def token_windows(count: int = 6, length: int = 16) -> TokenWindows:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, 128, (count, length), generator=generator)
    return TokenWindows(tokens=tokens, label="random tokens")


def run_loop(
    model, method, folder, *, finished=0, windows=None, refit=None, rewrite=None, **options
):
    store = RunStore(folder)
    if not finished:
        store.start({}, {}, resume=False)
    blocks = BlockwiseModel(open_source(model))
    how = LoopOptions(**options)
    if rewrite is not None:
        rewrite = RewriteBlock(rewrite, UniformGrid(bits=3), how)
    loop = SequentialLoop(blocks, method, store, how, refit=refit, rewrite=rewrite)
    loop.run(token_windows() if windows is None else windows, finished)
    return store.layers()


def plain_weights(model, method, stages):
    """Quantize `model` in place: for each stage run the whole model, collect, quantize."""
    tokens = token_windows().tokens
    for names in stages:
        statistics = InputStatistics(stored_weight(model, names[0]).shape[1])
        hook = model.get_submodule(names[0]).register_forward_pre_hook(
            lambda _, args, statistics=statistics: statistics.update(args[0])
        )
        with torch.no_grad():
            for batch in tokens.split(4):
                model(input_ids=batch, use_cache=False)
        hook.remove()
        for name in names:
            weight = stored_weight(model, name)
            layer = method.quantize(
                LayerProblem(name=name, weight=weight.clone(), statistics=statistics)
            )
            weight.copy_(layer.dequantize())
    return model


def stored_weight(model, name):
    """A view [out, in] of the weight of a linear or of GPT-2's Conv1D."""
    module = model.get_submodule(name)
    return module.weight.data.T if isinstance(module, Conv1D) else module.weight.data


class CrossMethod(GPTQ):
    """GPTQ that asks for the second stream and keeps what it got."""

    seen: dict[str, torch.Tensor] = {}  # noqa: RUF012

    @property
    def required_statistics(self) -> RequiredStatistics:
        return RequiredStatistics.GRAM | RequiredStatistics.CROSS

    def quantize(self, problem):
        self.seen[problem.name] = problem.statistics.cross.clone()
        return super().quantize(problem)


def input_of(model, name):
    """All inputs of one linear for the random tokens, one in each row."""
    rows = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: rows.append(args[0].flatten(0, 1))
    )
    with torch.no_grad():
        model(input_ids=token_windows().tokens, use_cache=False)
    hook.remove()
    return torch.cat(rows)
