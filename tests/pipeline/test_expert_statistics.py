"""Statistics of experts against their definition, token by token on the whole model."""

from copy import deepcopy

import pytest
import torch
from mixtures import matrices, tiny_mixture
from oracles.experts import (
    hidden_of,
    inputs_of_experts,
    routed_rows,
    sampled_rows,
    square,
)
from pipeline.plain_loop import run_loop, token_windows

from q2n.errors import InputError
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.methods.rtn import RTN

EXPERTS = "model.layers.0.mlp.experts"
BATCHES = token_windows().tokens.split(4)


class Watched(RTN):
    """RTN that keeps the statistics it was given."""

    seen: dict = {}  # noqa: RUF012

    @property
    def required_statistics(self):
        return RequiredStatistics.GRAM | RequiredStatistics.CROSS

    def quantize(self, problem):
        self.seen[problem.name] = problem.statistics
        return super().quantize(problem)


def quantized(folder, bits=3, model=None, **options):
    """Statistics by name, the layers, and the model with the quantized weights of block 0."""
    model = tiny_mixture(layers=1) if model is None else model
    method = Watched(bits=bits)
    layers = run_loop(model, method, folder, cross_tokens=0, **options)
    after, single = deepcopy(model), matrices(model)
    dense = matrices(after)
    with torch.no_grad():
        for name, layer in layers.items():
            weight = f"{name}.weight"
            target = dense[weight] if weight in single else after.get_parameter(weight)
            target.copy_(layer.dequantize())
    return dict(method.seen), layers, after


def expected(after, expert, projection, shrinkage):
    """The Gram matrix by its definition."""
    seen = inputs_of_experts(after, EXPERTS, BATCHES)
    own = routed_rows(seen, expert)
    every, stride = sampled_rows(seen, expert, 4)
    if projection == "down_proj":
        own, every = (hidden_of(after.get_submodule(EXPERTS), expert, x) for x in (own, every))
    tokens = sum(len(rows) for rows, _ in seen)
    return square(own) + shrinkage * stride / tokens * square(every)


@pytest.mark.parametrize("shrinkage", [0.0, 40.0])
def test_routed_tokens_and_the_mean_of_all(tmp_path, shrinkage):
    seen, layers, after = quantized(tmp_path, expert_shrinkage=shrinkage)
    for expert in range(4):
        for projection in ("gate_proj", "up_proj", "down_proj"):
            name = f"{EXPERTS}.{expert}.{projection}"
            gram = expected(after, expert, projection, shrinkage)
            torch.testing.assert_close(seen[name].gram, gram, rtol=2e-5, atol=1e-4)
            own = routed_rows(inputs_of_experts(after, EXPERTS, BATCHES), expert)
            assert layers[name].record["routed_tokens"] == len(own)


def test_all_tokens_reach_every_expert_if_asked(tmp_path):
    seen, _, after = quantized(tmp_path, all_experts=True)
    rows = torch.cat([rows for rows, _ in inputs_of_experts(after, EXPERTS, BATCHES)])
    for expert in range(4):
        hidden = hidden_of(after.get_submodule(EXPERTS), expert, rows)
        for projection, x in (("up_proj", rows), ("down_proj", hidden)):
            gram = seen[f"{EXPERTS}.{expert}.{projection}"].gram
            torch.testing.assert_close(gram, square(x), rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("shrinkage", [0.0, 40.0])
def test_full_precision_inputs_follow_the_quantized_routes(tmp_path, shrinkage):
    """Coarse attention sends tokens elsewhere; both streams count the same ones."""
    model = tiny_mixture(layers=1)
    seen, _, after = quantized(tmp_path, bits=2, model=model, expert_shrinkage=shrinkage)
    routes = inputs_of_experts(after, EXPERTS, BATCHES)
    before = inputs_of_experts(model, EXPERTS, BATCHES)
    assert any(not torch.equal(a, b) for (_, a), (_, b) in zip(routes, before, strict=True))
    followed = [(full, choice) for (full, _), (_, choice) in zip(before, routes, strict=True)]
    tokens = sum(len(rows) for rows, _ in routes)
    for expert in range(4):
        pairs = [[routed_rows(x, expert) for x in (followed, routes)]]
        pairs.append([sampled_rows(x, expert, 4)[0] for x in (followed, routes)])
        weights = (1.0, shrinkage * sampled_rows(routes, expert, 4)[1] / tokens)
        for projection in ("gate_proj", "down_proj"):
            if projection == "down_proj":
                both = (model.get_submodule(EXPERTS), after.get_submodule(EXPERTS))
                pairs = [
                    [hidden_of(experts, expert, x) for experts, x in zip(both, pair, strict=True)]
                    for pair in pairs
                ]
            expected = sum(w * full.T @ own for w, (full, own) in zip(weights, pairs, strict=True))
            cross = seen[f"{EXPERTS}.{expert}.{projection}"].cross
            torch.testing.assert_close(cross, expected, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("options", [{"expert_memory": 1e-9}, {"activations": "disk"}])
def test_groups_and_places_do_not_touch_the_result(tmp_path, options):
    _, plain, _ = quantized(tmp_path / "a")
    _, other, _ = quantized(tmp_path / "b", **options)
    assert set(plain) == set(other)
    for name, layer in plain.items():
        assert torch.equal(layer.dequantize(), other[name].dequantize()), name


def test_an_idle_expert_is_quantized_by_all_tokens(tmp_path):
    model = tiny_mixture(layers=1, num_experts_per_tok=1)
    router = model.model.layers[0].mlp.gate.weight
    with torch.no_grad():
        router[1:] = torch.stack((-router[0], 0 * router[0], 0 * router[0]))
    seen, layers, _ = quantized(tmp_path / "a", model=model)
    idle = [n for n, x in layers.items() if x.record.get("routed_tokens") == 0]
    assert idle and all(seen[name].gram.diagonal().sum() > 0 for name in idle)
    with pytest.raises(InputError, match=r"experts\.\d\.gate_proj: no token.*expert-shrinkage"):
        quantized(tmp_path / "b", model=model, expert_shrinkage=0.0)
