"""The costs of blocks and layers against the plain way: a whole model for each replacement."""

import weakref
from copy import deepcopy

import numpy as np
import pytest
import torch
from oracles import divergence
from tiny import tiny_model
from transformers.pytorch_utils import Conv1D
from whole_way import quantize

import q2n
from q2n.data.windows import TokenWindows
from q2n.errors import InputError
from q2n.evaluation import replaced_blocks
from q2n.evaluation.replaced_blocks import block_costs, block_runs
from q2n.logging import Reporter
from q2n.models.block_list import find_blocks
from q2n.models.blocks import BlockwiseModel
from q2n.models.calls import BlockInput, first_tensor
from q2n.models.source import open_source

GENERATOR = torch.Generator().manual_seed(0)
WINDOWS = TokenWindows(tokens=torch.randint(3, 128, (5, 16), generator=GENERATOR), label="x")
BIASED = ("gpt2", "phi")
SLOW = [pytest.param(x, marks=pytest.mark.slow) for x in ("gemma2", "gemma3n_text", "glm_moe_dsa")]


def linears(block):
    return {n: x for n, x in block.named_modules() if isinstance(x, torch.nn.Linear | Conv1D)}


def disturbed(model, size=0.1):
    """A copy with other weights in the linears of its blocks."""
    copy, generator = deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in find_blocks(copy)[1]:
            for linear in linears(block).values():
                noise = torch.randn(linear.weight.shape, generator=generator)
                linear.weight += size * linear.weight.std() * noise
    return copy


def costs(model, other, windows=WINDOWS, **options):
    blocks = (BlockwiseModel(open_source(x)) for x in (model, other))
    return block_costs(*blocks, windows, **{"batch_size": 2, "reporter": Reporter(), **options})


def replaced(model, other, places):
    """The whole model with these blocks of the other one."""
    copy = deepcopy(model)
    for place in places:
        find_blocks(copy)[1][place] = deepcopy(find_blocks(other)[1][place])
    return copy


@torch.no_grad()
def run(model):
    """Logits, and by name what went into each linear of a block and what came out of each block."""
    seen = {}
    name, blocks = find_blocks(model)

    def keep(key):
        return lambda _, args, out: seen.setdefault(key, []).append((args, out))

    hooks = [block.register_forward_hook(keep(f"{name}.{i}")) for i, block in enumerate(blocks)]
    for i, block in enumerate(blocks):
        hooks += [
            x.register_forward_hook(keep(f"{name}.{i}.{n}")) for n, x in linears(block).items()
        ]
    logits = model(input_ids=WINDOWS.tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits[:, :-1].flatten(0, 1).numpy(), seen


def change(expected, actual):
    """Relative error and mean cosine, in float64."""
    a, b = (x.flatten(0, -2).double().numpy() for x in (expected, actual))
    if not a.any():  # a layer of zeros
        return 0.0, 1.0
    cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return ((a - b) ** 2).sum() / (a**2).sum(), cosine.mean()


def matrix(linear):
    weight = linear.weight.double()
    return weight.T if isinstance(linear, Conv1D) else weight


def output_of(seen, block):
    out = seen[block][0][1]
    return out if isinstance(out, torch.Tensor) else first_tensor(out)


def assert_replaced(found, logits, seen, model, other, block, places):
    changed, changed_seen = run(replaced(model, other, places))
    targets = WINDOWS.tokens[:, 1:].flatten().numpy()
    scores = divergence.per_token(changed, logits, targets)
    windows = [slice(15 * i, 15 * i + 15) for i in range(5)]
    expected = divergence.statistics(scores, windows)
    assert found.divergence == pytest.approx(expected["divergence"], rel=1e-3)
    assert found.divergence_error == pytest.approx(expected["divergence_error"], rel=1e-3)
    assert found.same_top == pytest.approx(expected["same_top"])
    error, cosine = change(output_of(seen, block), output_of(changed_seen, block))
    assert found.output.relative_error == pytest.approx(error, rel=1e-3)
    assert found.output.cosine == pytest.approx(cosine, rel=1e-4)


@pytest.mark.parametrize("architecture", ["llama", *BIASED, *SLOW])
def test_costs_are_those_of_whole_models_with_replaced_blocks(architecture):
    layers = 4 if architecture == "gemma3n_text" else 3
    model = tiny_model(architecture, layers=layers)
    if architecture in BIASED:
        for block in find_blocks(model)[1]:
            for linear in linears(block).values():
                torch.nn.init.normal_(linear.bias)
    other = disturbed(model)
    found = costs(model, other)
    logits, seen = run(model)
    assert len(found.blocks) == layers
    for index, block in enumerate(found.blocks):
        given = (logits, seen, model, other, block.block)
        assert_replaced(block.alone, *given, [index])
        assert_replaced(block.up_to_here, *given, range(index + 1))
        for name, layer in block.layers.items():
            x = torch.cat([args[0].flatten(0, -2) for args, _ in seen[name]]).double()
            original, changed = (matrix(m.get_submodule(name)).detach() for m in (model, other))
            error, cosine = change(x @ original.T, x @ changed.T)
            assert layer.relative_error == pytest.approx(error, rel=1e-4)
            assert layer.cosine == pytest.approx(cosine, rel=1e-5)
        reached = {n for n in seen if n.startswith(f"{block.block}.")}
        assert block.layers.keys() == reached and reached


def test_streams_on_the_disk_change_nothing(monkeypatch):
    model = tiny_model()
    other = disturbed(model)
    in_memory = costs(model, other)
    monkeypatch.setattr(replaced_blocks, "MOST_IN_MEMORY", 0)
    on_disk = costs(model, other)
    assert on_disk.blocks == in_memory.blocks
    assert "disk" in on_disk.notes[0] and not in_memory.notes


def test_the_chunk_of_logits_changes_nothing(monkeypatch):
    model = tiny_model()
    other = disturbed(model)
    whole = costs(model, other)
    monkeypatch.setattr(replaced_blocks, "CHUNK", 4 * 128)
    for one, two in zip(whole.blocks, costs(model, other).blocks, strict=True):
        assert one.up_to_here.divergence == pytest.approx(two.up_to_here.divergence, rel=1e-5)


def test_equal_models_cost_nothing():
    model = tiny_model()
    for block in costs(model, deepcopy(model)).blocks:
        assert block.layers == {}
        for found in (block.alone, block.up_to_here):
            assert found.divergence == 0 and found.same_top == 1
            assert found.output.relative_error == 0


def test_blocks_run_as_often_as_is_said_and_two_are_in_memory(monkeypatch, tmp_path):
    alive, runs, done = weakref.WeakSet(), [], []
    load, run_block = BlockwiseModel.load_block, BlockInput.run

    def loaded(model, index):
        assert len(alive) <= 1
        block = load(model, index)
        alive.add(block)
        return block

    def ran(inputs, block):
        runs.append(1)
        return run_block(inputs, block)

    monkeypatch.setattr(BlockwiseModel, "load_block", loaded)
    monkeypatch.setattr(BlockInput, "run", ran)
    model = tiny_model(layers=5)
    blocks = [BlockwiseModel(open_source(x)) for x in (model, disturbed(model))]
    streams = replaced_blocks.ReplacedBlocks(
        *blocks, WINDOWS, batch_size=5, place="cpu", folder=tmp_path
    )
    told = []
    streams.measure(done.append, told.append)
    assert len(runs) == sum(done) == block_runs(5)
    assert "30 times" in told[0] and len(told) == 1


def test_another_model_is_refused():
    with pytest.raises(InputError, match="embeddings.*--reference"):
        costs(tiny_model(), tiny_model(seed=1))
    with pytest.raises(InputError, match="differ.*mlp.*--reference"):
        costs(tiny_model(), tiny_model(intermediate_size=64))


def test_a_changed_norm_outside_the_blocks_is_said():
    model = tiny_model()
    other = disturbed(model)
    with torch.no_grad():
        other.model.norm.weight *= 1.1
    (note,) = costs(model, other).notes
    assert "model.norm.weight" in note


@pytest.mark.slow
def test_a_learned_rotation_is_refused(tmp_path):
    from tiny import save_tiny, tiny_text

    save_tiny(tmp_path / "model")
    (tmp_path / "text.txt").write_text(tiny_text())
    own = {"method": "spinquant", "bits": 4, "format": "native", "rotate_steps": 1}
    done = quantize(tmp_path, "out", output_scales=False, **own)
    with pytest.raises(InputError, match="rotation of this checkpoint was learned"):
        q2n.inspect_fidelity(done.directory, ppl=tmp_path / "text.txt", length=16, windows=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "quarot", "bits": 4, "format": "native"}, {"method": "quip", "bits": 2}],
)
def test_all_blocks_together_cost_what_the_checkpoint_costs(tmp_path, settings):
    from tiny import save_tiny, tiny_text

    save_tiny(tmp_path / "model")
    (tmp_path / "text.txt").write_text(tiny_text())
    own = {"output_scales": False, "format": "native", **settings}
    done = quantize(tmp_path, "out", **own)
    on = {"ppl": tmp_path / "text.txt", "length": 16, "windows": 5}
    found = q2n.inspect_fidelity(done.directory, **on)
    expected = q2n.compare(done.directory, tmp_path / "model", **on).fidelity
    last = found.blocks[-1].up_to_here
    assert last.divergence == pytest.approx(expected.divergence, rel=1e-3)
    assert last.same_top == pytest.approx(expected.same_top)
    assert found.reference == str(tmp_path / "model")
    assert any("rotated" in note for note in found.notes) == ("quarot" in own.values())
    errors = {n: x.relative_error for block in found.blocks for n, x in block.layers.items()}
    assert errors.keys() == done.record["layers"].keys() and max(errors.values()) < 1


@pytest.mark.slow
def test_an_original_that_has_changed_since_is_said(tmp_path):
    from tiny import save_tiny, tiny_text

    save_tiny(tmp_path / "model")
    (tmp_path / "text.txt").write_text(tiny_text())
    done = quantize(tmp_path, "out", format="native")
    on = {"ppl": tmp_path / "text.txt", "length": 16, "windows": 2}
    assert q2n.inspect_fidelity(done.directory, **on).notes == ()
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight *= 1.1
    model.save_pretrained(tmp_path / "model")
    (note,) = q2n.inspect_fidelity(done.directory, **on).notes
    assert "have changed since" in note
