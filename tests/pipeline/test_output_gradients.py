"""Moments of the gradients at all layers' outputs, beside plain autograd; how a run keeps them."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from mixtures import tiny_mixture
from pipeline.test_bit_costs import tokens_of
from safetensors.torch import load, load_file
from tiny import SHARED_KEYS, save_tiny, tiny_model, tiny_text

import q2n
from q2n.config.reading import read_settings
from q2n.data.windows import TokenWindows
from q2n.disk.folders import make_working_folder
from q2n.distributed.ranks import ALONE
from q2n.grids.uniform import UniformGrid
from q2n.kernels import row_segments
from q2n.logging import Reporter
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.experts import one_by_one
from q2n.models.source import open_source
from q2n.pipeline import backward as module
from q2n.pipeline.backward import _drawn
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.output_gradients import OutputGradients, stored_gradients
from q2n.pipeline.rewrite_block import RewriteBlock
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.rewrites.awq import AWQ


@pytest.fixture
def labels(monkeypatch):
    """The labels that were drawn, window after window; products in float32."""
    drawn = []

    def draw(p, draws, generator):
        drawn.append(_drawn(p, draws, generator)[0])
        return [drawn[-1]]

    monkeypatch.setattr(module, "in_fast_dtype", lambda _: nullcontext())
    monkeypatch.setattr(module, "_drawn", draw)
    return drawn


def found(model, folder, tokens, **options):
    """By full name of the layer."""
    store, blocks = RunStore(folder), BlockwiseModel(open_source(model))
    make_working_folder(folder)
    store.start({}, {}, resume=False)
    windows = TokenWindows(tokens=tokens, label="random")
    OutputGradients(LoopOptions(batch_size=2, **options), Reporter())(store, blocks, windows)
    assert store.holds_work
    return {
        f"{blocks.block_name(index)}.{name}": x
        for index in range(len(blocks))
        for name, x in stored_gradients(store, ALONE, blocks, index).items()
    }


@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_has_moments(tmp_path, architecture, dtype):
    """Near those of float32. LayerNorm takes no input of another dtype than its own on a CPU."""
    wide = found(tiny_model(architecture), tmp_path / "wide", tokens_of(windows=2))
    half = found(tiny_model(architecture).to(dtype), tmp_path / "half", tokens_of(windows=2))
    assert half.keys() == wide.keys()
    for name, moment in half.items():
        assert torch.cosine_similarity(moment.flatten(), wide[name].flatten(), 0) > 0.7, name


def by_autograd(model, tokens, labels):
    """`sum g^T g` at the outputs of all linears of the whole model, by name, in units of the mean
    diagonal."""
    return {name: divided(x) for name, x in summed_by_autograd(model, tokens, labels).items()}


def divided(moment):
    return moment / moment.diagonal().mean()


def summed_by_autograd(model, tokens, labels):
    sums: dict[str, torch.Tensor] = {}

    def watch(name):
        def add(gradient):
            flat = gradient.flatten(0, -2).double()
            sums[name] = sums.get(name, 0) + flat.T @ flat

        return lambda _module, _inputs, output: output.register_hook(add) and None

    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Linear) or type(part).__name__ == "Conv1D":
            part.register_forward_hook(watch(name))
    for window, y in zip(tokens, labels, strict=True):
        log_p = model.requires_grad_(True)(window[None]).logits[0].log_softmax(1)
        (-log_p.gather(1, y[:, None]).sum()).backward()
    return sums


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", *SHARED_KEYS])
def test_moments_are_those_of_the_whole_model(tmp_path, labels, architecture):
    layers = 4 if architecture in SHARED_KEYS else 2
    model, tokens = tiny_model(architecture, layers=layers), tokens_of()
    moments = found(model, tmp_path / "run.partial", tokens)
    expected = by_autograd(model, tokens, labels)
    assert len(moments) >= 8
    for name, moment in moments.items():
        assert moment.dtype == torch.float16
        torch.testing.assert_close(moment.double(), expected[name], rtol=2e-3, atol=2e-3)


class Reads(RTN):
    """RTN that keeps what it is given."""

    problems: dict = {}  # noqa: RUF012

    @property
    def reads_gradients(self):
        return True

    def quantize(self, problem):
        self.problems[problem.name] = replace(problem, weight=problem.weight.clone())
        return super().quantize(problem)


def test_scales_that_a_rewrite_moves_into_a_linear_are_in_them(tmp_path, labels):
    """What the method reads is of the model that it quantizes."""
    model, tokens = tiny_model("llama", layers=2), tokens_of()
    found(model, tmp_path, tokens)
    blocks, options = BlockwiseModel(open_source(model)), LoopOptions()
    rewrite = RewriteBlock(AWQ(rewrite_windows=0), UniformGrid(bits=3), options)
    store = RunStore(tmp_path)
    loop = SequentialLoop(blocks, Reads(bits=8), store, options, rewrite=rewrite)
    loop.run(TokenWindows(tokens=tokens, label="random"))
    rewritten = tiny_model("llama", layers=2)
    with torch.no_grad():
        for name, weight in store.norm_weights().items():
            rewritten.get_parameter(name).copy_(weight)
        for name, problem in Reads.problems.items():
            rewritten.get_parameter(f"{name}.weight").copy_(problem.weight)
    expected, moved = by_autograd(rewritten, tokens, labels), 0
    before = by_autograd(tiny_model("llama", layers=2), tokens, labels)
    for name, problem in Reads.problems.items():
        moment = problem.gradients.double()
        moment /= moment.diagonal().mean()
        torch.testing.assert_close(moment, expected[name], rtol=5e-3, atol=5e-3)
        moved += not torch.allclose(moment, before[name], rtol=5e-3, atol=5e-3)
    assert moved == 2  # up of both blocks; values, which several heads read, stay


def test_of_a_long_text_some_windows_are_enough(tmp_path):
    """Whole ones, evenly spaced, as many as hold the tokens asked for."""
    model, tokens = tiny_model("llama", layers=1), tokens_of(windows=7)
    length = tokens.shape[1]
    some = found(model, tmp_path / "some", tokens, gradient_tokens=2 * length + 1)
    alone = found(model, tmp_path / "alone", tokens[[0, 2, 4]], gradient_tokens=0)
    assert equal(some, alone)
    enough = found(model, tmp_path / "enough", tokens, gradient_tokens=7 * length)
    assert equal(enough, found(model, tmp_path / "all", tokens, gradient_tokens=0))
    assert not equal(some, enough)


def test_a_choice_that_later_blocks_read_has_no_gradient(tmp_path, labels):
    """The tokens that a sparse attention has chosen: whole numbers."""
    moments = found(tiny_model("glm_moe_dsa", layers=2), tmp_path, tokens_of())
    chosen = {name for name, x in moments.items() if not x.any() and ".experts." not in name}
    assert chosen == {name for name in moments if ".indexer." in name} != set()


def test_experts_have_their_own_but_where_their_outputs_are_added_up(tmp_path, labels):
    """Each expert's `down_proj` reads the sum of all of the mixture."""
    tokens = tokens_of()
    moments = found(tiny_mixture(), tmp_path / "run.partial", tokens)
    sums = summed_by_autograd(one_by_one(tiny_mixture()), tokens, labels)
    downs, others = set(), 0
    for name in (x for x in moments if ".experts." in x):
        mixture = name.rsplit(".", 2)[0]
        expected = sums.get(name, torch.zeros_like(moments[name]))
        if name.endswith("down_proj"):
            expected = sum(x for of, x in sums.items() if of.startswith(mixture) and "down" in of)
            downs.add(moments[name].data_ptr())
        others += bool(expected.any())
        torch.testing.assert_close(
            moments[name].double(), divided(expected.double()).nan_to_num(), rtol=5e-3, atol=5e-3
        )
    assert len(downs) == 2 and others >= 12


@pytest.fixture
def run(tmp_path):
    """Quantizes a tiny model with output feedback; the tensors of the checkpoint."""
    save_tiny(tmp_path / "model", layers=2)
    (tmp_path / "text.txt").write_text(tiny_text())

    def quantize(output="out", **settings):
        plain = {
            "bits": 3,
            "output_feedback": True,
            "format": "native",
            "corpus": str(tmp_path / "text.txt"),
            "windows": 4,
            "length": 16,
        }
        q2n.quantize(tmp_path / "model", tmp_path / output, **{**plain, **settings})
        assert not (tmp_path / f"{output}.partial").exists()
        return load_file(tmp_path / output / "model.safetensors")

    return quantize


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[x], other[x]) for x in one)


def test_a_resumed_run_takes_the_stored_gradients(run, tmp_path, monkeypatch):
    whole, plain, found = run(), OutputGradients.__call__, []
    with monkeypatch.context() as patch:
        patch.setattr(SequentialLoop, "_quantize", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("later")
    folder = tmp_path / "later.partial"
    names = {f"gradients-0000{index}.{end}" for index in (0, 1) for end in ("json", "safetensors")}
    assert names <= {file.name for file in folder.iterdir()}
    last = load((folder / "gradients-00000.safetensors").read_bytes())
    (folder / "gradients-00001.json").unlink()  # as if interrupted while it sums
    monkeypatch.setattr(OutputGradients, "__call__", lambda *a: found.append(1) or plain(*a))
    assert equal(whole, run("later", resume=True))
    assert found == [1] and len(last) == 7
    times = json.loads((tmp_path / "later" / "q2n_timings.json").read_text())
    assert times["before"].keys() == {"gradients"} and times["before"]["gradients"] > 0
    every = [*times["before"].values(), *times["blocks"].values()]
    assert times["quantization_seconds"] == pytest.approx(sum(every))


@pytest.mark.parametrize(
    "settings", [{"method": "gptq", "quality": "good"}, {"method": "quip"}], ids=["gptq", "quip"]
)
def test_it_changes_codes_and_nothing_about_what_is_stored(run, monkeypatch, settings):
    monkeypatch.setattr(row_segments, "LONGEST", 16)
    without, with_it = run("without", output_feedback=False, **settings), run("with", **settings)
    assert {x: y.shape for x, y in without.items()} == {x: y.shape for x, y in with_it.items()}
    assert not equal(without, with_it)


@pytest.mark.parametrize(
    ("method", "owner"),
    [("gptq", "gptq"), ("quip", "ldlq"), ("ldlq", "ldlq"), ("quarot", "gptq")],
)
def test_best_asks_for_it(method, owner):
    settings = {"model": "x", "output": "y", "method": method, "quality": "best"}
    assert read_settings(settings).options[owner]["output_feedback"]
    settings |= {"quality": "good"}
    assert not read_settings(settings).options[owner]["output_feedback"]
