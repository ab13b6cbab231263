"""The block loop with a rewrite: the function stays, both streams agree, and it can be resumed."""

import pytest
import torch
from mixtures import tiny_mixture
from pipeline.plain_loop import CrossMethod, input_of, run_loop, stored_weight, token_windows
from tiny import tiny_model

from q2n.disk.folders import MARKER
from q2n.errors import InputError
from q2n.grids.uniform import UniformGrid
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.logging import Reporter
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.experts import one_by_one
from q2n.models.source import open_source
from q2n.pipeline.block_stages import EachRound
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.rewrite_block import RewriteBlock
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.pipeline.whole_model import refit_stored, refitted
from q2n.refit.model import ModelRefit
from q2n.rewrites.awq import AWQ
from q2n.rewrites.rewrite import Reading
from q2n.rewrites.smoothquant import SmoothQuant

NORM = "model.layers.0.input_layernorm.weight"
CLOSED, JUDGED = AWQ(rewrite_windows=0), AWQ(rewrite_windows=1)
"""Without a pass of a module, which takes a mixture long while types are checked; with few."""


class Seen(RTN):
    """RTN that keeps the weights it is given."""

    weights: dict[str, torch.Tensor] = {}  # noqa: RUF012

    def quantize(self, problem):
        self.weights[problem.name] = problem.weight.clone()
        return super().quantize(problem)


def rewritten(model, folder, rewrite, **options):
    """The model with the weights that the method was given, and what else was stored."""
    Seen.weights.clear()
    run_loop(model, Seen(bits=8), folder, rewrite=rewrite, **options)
    model = one_by_one(model)
    for name, norm in RunStore(folder).norm_weights().items():
        model.get_parameter(name).data.copy_(norm)
    for name, weight in Seen.weights.items():
        stored_weight(model, name).copy_(weight)
    return model


def uneven(model):
    """The model with biases and norms as they are after training, none at 0 or 1."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=token_windows().tokens, use_cache=False).logits


@pytest.mark.parametrize("rewrite", [JUDGED, SmoothQuant()], ids=["awq", "smoothquant"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "opt", "qwen2_moe"])
def test_without_rounding_the_model_computes_the_same(tmp_path, architecture, rewrite):
    def make():
        mixture = architecture == "qwen2_moe"
        return uneven(tiny_mixture(architecture) if mixture else tiny_model(architecture, layers=2))

    before, model = logits(make()), rewritten(make(), tmp_path, rewrite)
    original = one_by_one(make()).state_dict()
    changed = [n for n, x in model.state_dict().items() if not torch.equal(x, original[n])]
    assert len(changed) > 4
    difference = (logits(model) - before).abs().max() / before.abs().max()
    assert difference < 1e-5 * before.abs().max()


def test_routers_take_the_scale_of_their_norm(tmp_path):
    run_loop(tiny_mixture(), RTN(bits=8), tmp_path, rewrite=JUDGED)
    stored = RunStore(tmp_path).norm_weights()
    norm, router = (f"model.layers.1.{x}" for x in ("post_attention_layernorm", "mlp.gate"))
    model = tiny_mixture()
    scale = model.get_parameter(f"{norm}.weight") / stored[f"{norm}.weight"]
    assert not torch.allclose(scale, torch.ones(64))
    expected = model.get_parameter(f"{router}.weight") * scale
    torch.testing.assert_close(stored[f"{router}.weight"], expected.detach())


def test_the_scale_is_that_of_the_inputs_of_the_site(tmp_path):
    """Of the first block, whose inputs are the original ones, with GPTQ after it."""
    run_loop(tiny_model(layers=1), GPTQ(bits=3), tmp_path, rewrite=CLOSED)
    model = tiny_model(layers=1)
    names = [f"model.layers.0.self_attn.{x}_proj" for x in "qkv"]
    inputs = InputStatistics(64, RequiredStatistics.GRAM | RequiredStatistics.SIZES)
    inputs.update(input_of(model, names[0]))
    weights = [stored_weight(model, name) for name in names]
    reading = Reading(name="q", weights=weights, inputs=inputs, grid=UniformGrid(bits=3))
    scale = CLOSED.scale(reading)
    assert scale.max() / scale.min() > 1.1
    expected = model.get_parameter(NORM).detach() / scale
    torch.testing.assert_close(RunStore(tmp_path).norm_weights()[NORM], expected)


class Compared(CrossMethod):
    """Keeps the weights that it is given too."""

    weights: dict[str, torch.Tensor] = {}  # noqa: RUF012

    def quantize(self, problem):
        self.weights[problem.name] = problem.weight.clone()
        return super().quantize(problem)


@pytest.mark.parametrize("site", ["self_attn.q_proj", "mlp.down_proj"])
def test_both_streams_are_compared_in_one_scale(tmp_path, site):
    name, store = f"model.layers.0.{site}", RunStore(tmp_path)
    run_loop(
        tiny_model(layers=1),
        Compared(bits=3),
        tmp_path,
        rewrite=AWQ(rewrite_windows=0),
        cross_tokens=0,
    )
    full, model = tiny_model(layers=1), tiny_model(layers=1)
    scale = Compared.weights[name].norm(dim=0) / stored_weight(full, name).norm(dim=0)
    assert scale.max() / scale.min() > 1.1
    for other, layer in store.layers().items():
        stored_weight(model, other).copy_(layer.dequantize())
    for norm, weight in store.norm_weights().items():
        model.get_parameter(norm).data.copy_(weight)
    expected = (input_of(full, name) / scale).T @ input_of(model, name)
    torch.testing.assert_close(Compared.seen[name], expected, rtol=1e-4, atol=1e-3)


def test_what_cannot_be_scaled_is_listed(tmp_path):
    run_loop(tiny_model(layers=2), RTN(bits=4), tmp_path, rewrite=AWQ())
    facts = RunStore(tmp_path).finished()
    assert [x["not_scaled"] for x in facts] == [
        [f"model.layers.{index}.self_attn.o_proj"] for index in range(2)
    ]


@pytest.mark.parametrize("rewrite", [AWQ(rewrite_clip=True), SmoothQuant()])
def test_a_resumed_run_gives_the_same_bytes(tmp_path, rewrite):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_loop(tiny_model(layers=2), RTN(bits=2), whole, rewrite=rewrite)
    broken.mkdir()
    for name in (MARKER, "run.json", "block-00000.json", "block-00000.safetensors"):
        (broken / name).write_bytes((whole / name).read_bytes())
    run_loop(tiny_model(layers=2), RTN(bits=2), broken, finished=1, rewrite=rewrite)
    name = "block-00001.safetensors"
    assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_clipping_spares_queries_and_keys(tmp_path):
    model = rewritten(tiny_model(layers=1), tmp_path / "clip", AWQ(rewrite_clip=True))
    plain = rewritten(tiny_model(layers=1), tmp_path / "plain", AWQ())
    same = {
        name: torch.equal(stored_weight(model, name), stored_weight(plain, name))
        for name in (f"model.layers.0.self_attn.{x}_proj" for x in "qkvo")
    }
    assert list(same.values()) == [True, True, False, False]


def test_little_memory_changes_nothing_but_the_order(tmp_path):
    plain = rewritten(tiny_mixture(layers=1), tmp_path / "a", CLOSED)
    little = rewritten(tiny_mixture(layers=1), tmp_path / "b", CLOSED, expert_memory=1e-5)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(little.state_dict()[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"all_experts": True}, {"expert_shrinkage": 0.0}])
def test_experts_are_scaled_by_the_tokens_asked_for(tmp_path, options):
    plain = rewritten(tiny_mixture(layers=1), tmp_path / "a", SmoothQuant())
    other = rewritten(tiny_mixture(layers=1), tmp_path / "b", SmoothQuant(), **options)
    assert plain.state_dict().keys() == other.state_dict().keys()
    first = rewritten(tiny_mixture(layers=1), tmp_path / "c", CLOSED)
    second = rewritten(tiny_mixture(layers=1), tmp_path / "d", CLOSED, **options)
    down = "model.layers.0.mlp.experts.0.down_proj.weight"
    assert not torch.equal(first.state_dict()[down], second.state_dict()[down])


def test_a_refit_of_the_model_keeps_what_is_no_norm(tmp_path):
    run_loop(tiny_mixture(layers=1), RTN(bits=4), tmp_path, rewrite=CLOSED)
    store = RunStore(tmp_path)
    before = store.norm_weights()
    refit_stored(
        store,
        ModelRefit(steps=2),
        lambda: one_by_one(tiny_mixture(layers=1)),
        token_windows(),
        reporter=Reporter("quiet"),
    )
    after = refitted(store).norm_weights()
    router = "model.layers.0.mlp.gate.weight"
    assert {*before} <= {*after} and torch.equal(after[router], before[router])


def test_the_rewrite_is_the_first_stage(tmp_path):
    blocks, options = BlockwiseModel(open_source(tiny_model(layers=1))), LoopOptions()
    rewrite = RewriteBlock(SmoothQuant(), None, options)
    loop = SequentialLoop(blocks, RTN(bits=4), RunStore(tmp_path), options, rewrite=rewrite)
    assert loop.stages[0] is rewrite and isinstance(loop.stages[1], EachRound)
    with pytest.raises(InputError, match="a rewrite needs calibration text"):
        loop.run(None)
