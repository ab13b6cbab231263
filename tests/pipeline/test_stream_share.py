"""What the residual stream lacks, as the loop measures it: against two models run by themselves."""

import torch
from tiny import tiny_model

from q2n.data.windows import TokenWindows
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.wrappers.correction import InputErrorCorrection

SHARE = 0.5
OUT, DOWN = "self_attn.o_proj", "mlp.down_proj"


def quantized(model, tokens, folder, monkeypatch, **options):
    """What the correction was given of each layer's stream, and the weights that came of it."""
    seen, weights = {}, {}
    quantize = InputErrorCorrection.quantize

    def spied(self, problem):
        seen[problem.name] = problem.statistics.stream_lack
        layer = quantize(self, problem)
        weights[problem.name] = layer.dequantize()
        return layer

    monkeypatch.setattr(InputErrorCorrection, "quantize", spied)
    store = RunStore(folder)
    store.start({}, {}, resume=False)
    method = InputErrorCorrection(inner=RTN(bits=3))
    options = LoopOptions(batch_size=3, cross_tokens=0, **options)
    loop = SequentialLoop(BlockwiseModel(open_source(model)), method, store, options)
    loop.run(TokenWindows(tokens=tokens, label="random"))
    return seen, weights


@torch.no_grad()
def test_the_lack_is_that_of_two_whole_models(tmp_path, monkeypatch):
    model = tiny_model(layers=2)
    tokens = torch.randint(3, 128, (4, 24), generator=torch.Generator().manual_seed(1))
    seen, weights = quantized(model, tokens, tmp_path, monkeypatch, stream_share=SHARE)
    assert {name for name, x in seen.items() if x is not None} == {
        f"model.layers.{block}.{name}" for block in (0, 1) for name in (OUT, DOWN)
    }
    # no block before the first: its attention adds to the same in both models
    assert not seen[f"model.layers.0.{OUT}"].any()
    for name, stream in ((OUT, "input_layernorm"), (DOWN, "post_attention_layernorm")):
        expected = lack(model, weights, tokens, name, stream)
        found = seen[f"model.layers.1.{name}"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
        assert expected.abs().max() > 1


def test_without_a_share_nothing_is_measured(tmp_path, monkeypatch):
    tokens = torch.randint(3, 128, (2, 16), generator=torch.Generator().manual_seed(1))
    seen, _ = quantized(tiny_model(layers=1), tokens, tmp_path, monkeypatch)
    assert len(seen) == 7 and all(x is None for x in seen.values())


def lack(model, weights, tokens, writer, stream):
    """`share sum (s_full - s)^T x` at a layer of block 1; nothing that is quantized after it is
    read before it."""
    block = model.model.layers[1]
    found = {}

    def keep(name):
        return lambda _, args: found.__setitem__(name, args[0].flatten(0, 1).clone())

    hooks = [block.get_submodule(x).register_forward_pre_hook(keep(x)) for x in (writer, stream)]
    model(tokens)
    full = found[stream]
    before = {name: model.get_submodule(name).weight.clone() for name in weights}
    for name, weight in weights.items():
        model.get_submodule(name).weight.copy_(weight)
    model(tokens)
    for name, weight in before.items():
        model.get_submodule(name).weight.copy_(weight)
    for hook in hooks:
        hook.remove()
    return SHARE * (full - found[stream]).T @ found[writer]
