"""Gradients of a model's own predictions and the costs of widths, beside plain autograd."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from mixtures import tiny_mixture
from tiny import SHARED_KEYS, VOCABULARY, tiny_model

from q2n.data.windows import TokenWindows
from q2n.errors import NumericalError
from q2n.linalg.allocation import Point
from q2n.logging import Reporter
from q2n.method import LayerProblem
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.pipeline import backward as module
from q2n.pipeline.backward import Backward, _drawn
from q2n.pipeline.bit_costs import DRAWS, TRIED, BitCosts, Group
from q2n.pipeline.options import LoopOptions

OPTIONS = LoopOptions(batch_size=2)
WINDOWS, LENGTH = 5, 12
CANDIDATES = {bits: RTN(bits=bits) for bits in (2, 3, 4, 8)}


def tokens_of(windows=WINDOWS, length=LENGTH):
    return torch.randint(
        3, VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Products in float32."""
    monkeypatch.setattr(module, "in_fast_dtype", lambda _: nullcontext())


@pytest.fixture
def labels(monkeypatch):
    """The labels that were drawn, window after window, by draw."""
    drawn = []

    def draw(p, draws, generator):
        drawn.append(_drawn(p, draws, generator))
        return drawn[-1]

    monkeypatch.setattr(module, "_drawn", draw)
    return drawn


def gradients(model, tokens, labels):
    """Of each window and draw: d(-sum log p_y) / dW by plain autograd through the whole model."""
    model.requires_grad_(True)
    for window, draws in zip(tokens, labels, strict=True):
        for y in draws:
            model.zero_grad()
            log_p = model(window[None]).logits[0].log_softmax(1)
            (-log_p.gather(1, y[:, None]).sum()).backward()
            yield {
                name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None
            }


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "qwen3_moe", *SHARED_KEYS])
@pytest.mark.parametrize("activations", ["device", "disk"])
def test_gradients_are_those_of_the_whole_model(tmp_path, labels, architecture, activations):
    moe = architecture == "qwen3_moe"
    layers = 4 if architecture in SHARED_KEYS else 2
    model = tiny_mixture(architecture) if moe else tiny_model(architecture, layers=layers)
    blocks, tokens = BlockwiseModel(open_source(model)), tokens_of()
    found: dict[str, list] = {}
    options = replace(OPTIONS, activations=activations)
    with (
        torch.no_grad(),
        Backward(blocks, tokens, options, tmp_path / "a", draws=2, without="no") as passes,
    ):
        loaded = [blocks.load_block(index) for index in range(len(blocks))]
        for index, block in enumerate(loaded):
            passes.forward(index, block)
        passes.draw()
        for index in reversed(range(len(blocks))):
            targets = blocks.targets_of(index, loaded[index])[0]
            weights = {
                f"{blocks.block_name(index)}.{name}": x.module.get_parameter("weight")
                for name, x in targets.items()
            }
            for weight in weights.values():
                weight.requires_grad_()
            for _ in passes.through(index, loaded[index]):
                for name, weight in weights.items():
                    found.setdefault(name, []).append(weight.grad)
    assert len(labels) == WINDOWS and passes.steps == 2 * WINDOWS
    expected = list(gradients(model, tokens, labels))
    compared = 0
    for name, steps in found.items():
        if (key := f"{name}.weight") not in expected[0]:
            continue  # an expert, which this model keeps fused
        for one, other in zip(steps, expected, strict=True):
            torch.testing.assert_close(one, other[key], rtol=1e-3, atol=1e-5)
            compared += 1
    assert compared >= 2 * WINDOWS * (8 if moe else 8)
    assert not list((tmp_path / "a").rglob("*.safetensors"))


def test_labels_are_drawn_as_the_model_predicts():
    p = torch.tensor([[0.1, 0.2, 0.7], [0.0, 1.0, 0.0]]).repeat(20000, 1)
    (labels,) = _drawn(p, 1, torch.Generator().manual_seed(0))
    shares = torch.bincount(labels[::2], minlength=3) / 20000
    torch.testing.assert_close(shares, p[0], atol=0.01, rtol=0)
    assert (labels[1::2] == 1).all()


def found_costs(model, folder, candidates, tokens):
    costs = BitCosts(candidates, OPTIONS, torch.float32, Reporter())
    windows = TokenWindows(tokens=tokens, label="random")
    return costs(BlockwiseModel(open_source(model)), windows, folder)


def test_costs_are_the_squares_of_gradients_along_the_errors(tmp_path, labels):
    model, tokens = tiny_model("llama", layers=2), tokens_of()
    groups = found_costs(model, tmp_path, CANDIDATES, tokens)
    names = [group.name.split(".", 2)[2] for group in groups]
    assert names == [
        f"{block}.{x}"
        for block in (0, 1)
        for x in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    ]
    assert [len(group.layers) for group in groups] == [3, 1, 2, 1] * 2
    steps = list(gradients(model, tokens, labels))
    assert len(steps) == DRAWS * WINDOWS
    for group in groups:
        assert list(group.points) == [2, 3, 4, 8]
        two, three, four, eight = (x.cost for x in group.points.values())
        assert three == pytest.approx((two * four) ** 0.5)
        assert eight == pytest.approx(four * (four / two) ** 2)
        for bits, point in group.points.items():
            errors = {x: error_of(model, x, bits).half().float() for x in group.layers}
            along = [sum((g[f"{x}.weight"] * e).sum() for x, e in errors.items()) for g in steps]
            expected = float(torch.stack(along).square().mean()) / (2 * LENGTH)
            if bits in TRIED:
                assert point.cost == pytest.approx(expected, rel=1e-2)
            weights = sum(e.numel() for e in errors.values())
            rows = sum(len(e) for e in errors.values())
            assert point.size == bits * weights + (32 + bits) * rows


def error_of(model, name, bits):
    weight = model.get_parameter(f"{name}.weight").detach()
    layer = RTN(bits=bits).quantize(LayerProblem(name=name, weight=weight, statistics=None))
    return weight - layer.dequantize()


@torch.no_grad()
def test_costs_foretell_the_divergence(tmp_path):
    """Of one group after the other in 4 bits, on many labels."""
    model, tokens = tiny_model("llama", layers=2), tokens_of(64, 24)
    groups = found_costs(model, tmp_path, CANDIDATES, tokens)
    log_p = model(tokens).logits.log_softmax(-1)
    for group in groups:
        kept = {x: model.get_parameter(f"{x}.weight").clone() for x in group.layers}
        for name in kept:
            model.get_parameter(f"{name}.weight").sub_(error_of(model, name, 4))
        log_q = model(tokens).logits.log_softmax(-1)
        divergence = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        assert group.points[4].cost == pytest.approx(divergence, rel=0.5)
        for name, weight in kept.items():
            model.get_parameter(f"{name}.weight").copy_(weight)


def test_all_experts_of_a_block_are_one_group(tmp_path):
    groups = found_costs(tiny_mixture(), tmp_path, CANDIDATES, tokens_of())
    experts = [group for group in groups if "experts" in group.name]
    assert len(experts) == 2 and all(len(group.layers) % 3 == 0 for group in experts)
    assert not any("experts" in x for g in groups if g not in experts for x in g.layers)
    assert all(point.cost > 0 for group in groups for point in group.points.values())


def test_a_group_travels_through_json():
    group = Group(("a", "b"), {2: Point(0.5, 10), "q8_0": Point(0.1, 40)})
    assert Group.from_json(group.to_json()) == group


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_overflow_is_no_cost(tmp_path, dtype):
    """Rounding to nearest reads no statistics, so nothing before would see it."""
    model = tiny_model(layers=2).to(dtype)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(60000.0)
    costs = BitCosts(CANDIDATES, OPTIONS, torch.float32, Reporter())
    windows = TokenWindows(tokens=tokens_of(), label="random")
    blocks = BlockwiseModel(open_source(model))
    if dtype == torch.float32:
        assert len(costs(blocks, windows, tmp_path)) == 8
        return
    with pytest.raises(NumericalError, match=r"layers\.1\.self_attn\.q_proj: .*float32"):
        costs(blocks, windows, tmp_path)
