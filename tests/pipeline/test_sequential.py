"""The block loop against a plain version: hooks on the whole model, one linear after another."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import ARCHITECTURES, TRANSPOSED, tiny_model
from transformers.pytorch_utils import Conv1D

from q2n.data.windows import TokenWindows
from q2n.errors import InputError, NumericalError
from q2n.linalg.statistics import InputStatistics, RequiredStatistics
from q2n.method import LayerProblem
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.refit.block import BlockRefit
from q2n.refit.tuner import Rates
from q2n.wrappers.nullspace import NullSpace

REFIT = BlockRefit(steps=4, rates=Rates(scale=0.01, norm=0.01))


def token_windows(count: int = 6, length: int = 16) -> TokenWindows:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, 128, (count, length), generator=generator)
    return TokenWindows(tokens=tokens, label="random tokens")


def run_loop(model, method, folder, *, finished=0, windows=None, refit=None, **options):
    store = RunStore(folder)
    if not finished:
        store.start({}, {}, resume=False)
    blocks = BlockwiseModel(open_source(model))
    loop = SequentialLoop(blocks, method, store, LoopOptions(**options), refit=refit)
    loop.run(token_windows() if windows is None else windows, finished)
    return store.layers()


def plain_weights(model, method, stages, needs=RequiredStatistics.GRAM):
    """Quantize `model` in place: for each stage run the whole model, collect, quantize."""
    tokens = token_windows().tokens
    for names in stages:
        statistics = InputStatistics(stored_weight(model, names[0]).shape[1], needs)
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


def llama_stages(layers: int) -> list[list[str]]:
    return [
        [f"model.layers.{i}.{name}" for name in stage]
        for i in range(layers)
        for stage in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.o_proj",),
            ("mlp.gate_proj", "mlp.up_proj"),
            ("mlp.down_proj",),
        )
    ]


@pytest.mark.parametrize("activations", ["device", "disk"])
def test_true_sequential_equals_the_plain_loop(tmp_path, activations):
    method = NullSpace(inner=GPTQ(bits=3))
    layers = run_loop(tiny_model(), method, tmp_path, activations=activations)
    expected = plain_weights(tiny_model(), method, llama_stages(3))
    assert set(layers) == {name for stage in llama_stages(3) for name in stage}
    for name, layer in layers.items():
        torch.testing.assert_close(
            layer.dequantize(), expected.get_submodule(name).weight.data, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("refit", [False, True])
def test_gpt2_equals_the_plain_loop(tmp_path, refit):
    """Its weights are stored [in, out]."""
    method, model = GPTQ(bits=3), tiny_model("gpt2", layers=1)
    layers = run_loop(model, method, tmp_path, refit=REFIT if refit else None)
    names = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    stages = [[f"transformer.h.0.{name}"] for name in names]
    expected = plain_weights(tiny_model("gpt2", layers=1), method, stages)
    assert [layer.shape for layer in layers.values()] == [(192, 64), (64, 64), (96, 64), (64, 96)]
    for [name] in stages:
        weight = stored_weight(expected, name)
        if refit:  # of other scales, on the same codes
            assert torch.cosine_similarity(layers[name].dequantize(), weight).min() > 0.99
        else:
            torch.testing.assert_close(layers[name].dequantize(), weight, rtol=0, atol=1e-6)


def test_without_true_sequential_inputs_are_full_precision(tmp_path):
    method, layers = GPTQ(bits=3), {}
    actual = run_loop(tiny_model(), method, tmp_path, true_sequential=False)
    model = tiny_model()
    for i in range(3):
        stages = llama_stages(3)[4 * i : 4 * i + 4]
        copies = [plain_weights(_copy(model), method, [stage]) for stage in stages]
        for stage, copy in zip(stages, copies, strict=True):
            for name in stage:
                layers[name] = copy.get_submodule(name).weight.data
        for name, weight in layers.items():
            model.get_submodule(name).weight.data.copy_(weight)
    for name, layer in actual.items():
        torch.testing.assert_close(layer.dequantize(), layers[name], rtol=0, atol=1e-6)


def _copy(model):
    copied = tiny_model()
    copied.load_state_dict(model.state_dict())
    return copied


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *TRANSPOSED])
def test_every_architecture_is_quantized_completely(architecture, tmp_path):
    model = tiny_model(architecture, layers=2)
    linears = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and any(char.isdigit() for char in name)
    }
    layers = run_loop(model, GPTQ(bits=4), tmp_path)
    assert set(layers) == linears
    for layer in layers.values():
        assert 0 < layer.record["output_error"] < 0.05


def test_rtn_needs_no_text(tmp_path):
    store = RunStore(tmp_path)
    store.start({}, {}, resume=False)
    model = tiny_model()
    SequentialLoop(BlockwiseModel(open_source(model)), RTN(bits=4), store, LoopOptions()).run(None)
    layers = store.layers()
    assert len(layers) == 21
    name = "model.layers.2.mlp.down_proj"
    weight = model.get_submodule(name).weight
    assert (layers[name].dequantize() - weight).abs().max() < weight.abs().max() / 7


def test_gptq_without_text_is_refused(tmp_path):
    store = RunStore(tmp_path)
    loop = SequentialLoop(
        BlockwiseModel(open_source(tiny_model())), GPTQ(bits=4), store, LoopOptions()
    )
    with pytest.raises(InputError, match="--corpus"):
        loop.run(None)


@pytest.mark.parametrize("done", [1, 2])
def test_resuming_gives_the_same_bytes(tmp_path, done):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    method = NullSpace(inner=GPTQ(bits=3))
    run_loop(tiny_model(), method, whole)
    run_loop(tiny_model(), method, broken)
    for index in range(done, 3):
        for suffix in (".json", ".safetensors"):
            (broken / f"block-{index:05d}{suffix}").unlink()
    run_loop(tiny_model(), method, broken, finished=done)
    for index in range(3):
        name = f"block-{index:05d}.safetensors"
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


class CrossMethod(GPTQ):
    """GPTQ that asks for the second stream and keeps what it got."""

    seen: dict[str, torch.Tensor] = {}  # noqa: RUF012

    @property
    def required_statistics(self) -> RequiredStatistics:
        return RequiredStatistics.GRAM | RequiredStatistics.CROSS

    def quantize(self, problem):
        self.seen[problem.name] = problem.statistics.cross.clone()
        return super().quantize(problem)


@pytest.mark.parametrize("finished", [0, 1])
def test_the_second_stream_is_the_full_precision_model(tmp_path, finished):
    method = CrossMethod(bits=3)
    CrossMethod.seen.clear()
    layers = run_loop(tiny_model(), method, tmp_path)
    if finished:
        (tmp_path / "block-00002.json").unlink()
        (tmp_path / "block-00001.json").unlink()
        CrossMethod.seen.clear()
        run_loop(tiny_model(), method, tmp_path, finished=1)
    name = "model.layers.2.mlp.down_proj"
    full, quantized = tiny_model(), tiny_model()
    for other, layer in layers.items():
        if other != name:
            quantized.get_submodule(other).weight.data.copy_(layer.dequantize())
    inputs = [_input_of(model, name) for model in (full, quantized)]
    expected = inputs[0].T @ inputs[1]
    # float32 sums of about 100 products each, in another order
    torch.testing.assert_close(CrossMethod.seen[name], expected, rtol=1e-4, atol=1e-4)


def test_cross_moments_of_long_text_are_thinned(tmp_path):
    """By every site's own width, and not at all where the text is short or nothing was asked."""
    options = LoopOptions(cross_tokens=4)
    assert [options.cross_stride(1024, width) for width in (16, 64, 100, 400)] == [16, 4, 2, 1]
    assert LoopOptions().cross_stride(10**6, 16) == 1
    with pytest.raises(InputError, match="cross_tokens"):
        LoopOptions(cross_tokens=-1)
    seen, windows = {}, token_windows(count=24, length=32)
    for tokens in (0, 1):
        CrossMethod.seen.clear()
        folder = tmp_path / str(tokens)
        method = CrossMethod(bits=3)
        run_loop(tiny_model(), method, folder, windows=windows, cross_tokens=tokens)
        seen[tokens] = dict(CrossMethod.seen)
    first = "model.layers.0.self_attn.q_proj"  # nothing is quantized yet: no residual
    torch.testing.assert_close(seen[0][first], seen[1][first], rtol=1e-4, atol=1e-4)
    last = "model.layers.2.mlp.down_proj"
    assert not torch.allclose(seen[0][last], seen[1][last], rtol=1e-3)


def _input_of(model, name):
    rows = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: rows.append(args[0].flatten(0, 1))
    )
    with torch.no_grad():
        model(input_ids=token_windows().tokens, use_cache=False)
    hook.remove()
    return torch.cat(rows)


def as_stored(model, folder):
    """The model with the stored layers and norms in their places."""
    store = RunStore(folder)
    for name, layer in store.layers().items():
        stored_weight(model, name).copy_(layer.dequantize())
    for name, norm in store.norm_weights().items():
        model.get_parameter(name).data.copy_(norm)
    return model


@pytest.mark.parametrize("method", [RTN(bits=2), GPTQ(bits=2)], ids=["rtn", "gptq"])
@pytest.mark.parametrize("done", [1, 2, 3])
def test_resuming_after_a_refit_gives_the_same_bytes(tmp_path, done, method):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_loop(tiny_model(), method, whole, refit=REFIT)
    broken.mkdir()
    for index in range(done):
        for suffix in (".json", ".safetensors"):
            name = f"block-{index:05d}{suffix}"
            (broken / name).write_bytes((whole / name).read_bytes())
    run_loop(tiny_model(), method, broken, finished=done, refit=REFIT)
    stores = [RunStore(folder) for folder in (whole, broken)]
    assert len(stores[0].norm_weights()) == 6
    for index in range(3):
        name = f"block-{index:05d}.safetensors"
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
        assert stores[0].read_norm_weights(index).keys() == {
            f"model.layers.{index}.{norm}.weight"
            for norm in ("input_layernorm", "post_attention_layernorm")
        }


@pytest.mark.parametrize(
    "options", [{"activations": "disk"}, {"true_sequential": False}, {"batch_size": 6}]
)
def test_a_refit_does_not_depend_on_loop_options(tmp_path, options):
    """RTN reads no statistics: nothing but the refit could see the difference."""
    plain, other = tmp_path / "plain", tmp_path / "other"
    run_loop(tiny_model(), RTN(bits=2), plain, refit=REFIT)
    run_loop(tiny_model(), RTN(bits=2), other, refit=REFIT, **options)
    for index in range(3):
        name = f"block-{index:05d}.safetensors"
        actual, expected = load_file(other / name), load_file(plain / name)
        assert actual.keys() == expected.keys()
        for key, tensor in actual.items():
            # a batch of another size multiplies in another order
            torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "opt", "gpt2"])
def test_refitted_blocks_bring_the_last_output_nearer(tmp_path, architecture):
    refit = BlockRefit(steps=24, rates=Rates(scale=0.02, norm=0.02))
    models = {"full": tiny_model(architecture, layers=2)}
    for name, how in (("plain", None), ("refitted", refit)):
        run_loop(tiny_model(architecture, layers=2), RTN(bits=2), tmp_path / name, refit=how)
        models[name] = as_stored(tiny_model(architecture, layers=2), tmp_path / name)
    with torch.no_grad():
        outputs = {
            name: model.base_model(token_windows().tokens, use_cache=False).last_hidden_state
            for name, model in models.items()
        }
    errors = [(outputs[name] - outputs["full"]).square().mean() for name in ("plain", "refitted")]
    assert errors[1] < 0.85 * errors[0]
    facts = RunStore(tmp_path / "refitted").finished()
    assert all(last < first for first, last in (block["refit_loss"] for block in facts))
    assert RunStore(tmp_path / "plain").norm_weights() == {}


@pytest.mark.parametrize("finished", [0, 1])
def test_later_blocks_see_what_the_refit_left(tmp_path, finished):
    """Weights and norms of the refitted blocks are in the inputs of the next one, and the second
    stream is the full-precision model all the same."""
    CrossMethod.seen.clear()
    run_loop(tiny_model(), CrossMethod(bits=2), tmp_path, refit=REFIT)
    if finished:
        (tmp_path / "block-00001.json").unlink()
        CrossMethod.seen.clear()
        run_loop(tiny_model(), CrossMethod(bits=2), tmp_path, finished=1, refit=REFIT)
    name = "model.layers.2.self_attn.q_proj"
    original = tiny_model().model.layers[2].input_layernorm.weight
    quantized = as_stored(tiny_model(), tmp_path)
    quantized.model.layers[2].input_layernorm.weight.data.copy_(original)  # refitted after q
    inputs = [_input_of(model, name) for model in (tiny_model(), quantized)]
    # float32 sums of about 100 products each, in another order
    torch.testing.assert_close(
        CrossMethod.seen[name], inputs[0].T @ inputs[1], rtol=1e-4, atol=1e-4
    )


def test_a_refit_without_text_is_refused(tmp_path):
    store = RunStore(tmp_path)
    blocks = BlockwiseModel(open_source(tiny_model()))
    loop = SequentialLoop(blocks, RTN(bits=4), store, LoopOptions(), refit=REFIT)
    with pytest.raises(InputError, match="--corpus"):
        loop.run(None)


def test_a_refit_that_fails_names_the_block(tmp_path):
    refit = BlockRefit(steps=4, rates=Rates(scale=1e30, norm=0.01))
    with pytest.raises(NumericalError, match=r"model\.layers\.0: the loss of refit step 1"):
        run_loop(tiny_model(), RTN(bits=2), tmp_path, refit=refit)


def test_activations_that_overflow_are_named(tmp_path):
    model = tiny_model().half()
    model.model.layers[1].mlp.up_proj.weight.data.fill_(3e4)
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.down_proj"):
        run_loop(model, GPTQ(bits=8), tmp_path)


def test_disk_activations_are_cleared_away(tmp_path):
    run_loop(tiny_model(), GPTQ(bits=4), tmp_path, activations="disk")
    assert not (tmp_path / "activations").exists() or not list(
        (tmp_path / "activations").rglob("*.safetensors")
    )
    assert load_file(tmp_path / "block-00000.safetensors")
