"""A loop that leaves some layers in full precision."""

import shutil

import pytest
import torch
from tiny import tiny_model

from q2n.data.windows import TokenWindows
from q2n.linalg.statistics import InputStatistics
from q2n.methods.gptq import GPTQ
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.models.targets import LayerFilter
from q2n.pipeline import measure
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.refit.block import BlockRefit
from q2n.refit.tuner import Rates

DOWN = LayerFilter(ignore=("*down_proj",))
REFIT = BlockRefit(steps=4, rates=Rates(scale=0.01, norm=0.01, code=0.1))


def run_loop(folder, layers=DOWN, *, finished=0, refit=None, blocks=None, **options):
    """Quantize a tiny model; the states of its blocks are appended to `blocks`."""
    store = RunStore(folder)
    if not finished:
        store.start({}, {}, resume=False)
    model = BlockwiseModel(open_source(tiny_model()), layers=layers)
    loop = SequentialLoop(model, GPTQ(bits=3), store, LoopOptions(**options), refit=refit)
    if blocks is not None:
        loop.stages.append(lambda state: blocks.append(state.block) or state)
    tokens = torch.randint(3, 128, (6, 16), generator=torch.Generator().manual_seed(3))
    loop.run(TokenWindows(tokens=tokens, label="random tokens"), finished)
    return store


@pytest.mark.parametrize("refit", [None, REFIT], ids=["plain", "refit"])
@pytest.mark.parametrize("true_sequential", [True, False])
def test_ignored_layers_alone_keep_their_weights(tmp_path, true_sequential, refit):
    blocks = []
    store = run_loop(tmp_path, true_sequential=true_sequential, refit=refit, blocks=blocks)
    for index, (block, original) in enumerate(zip(blocks, tiny_model().model.layers, strict=True)):
        same = {
            name
            for name, parameter in original.named_parameters()
            if torch.equal(parameter, block.get_parameter(name))
        }
        norms = {f"{name}_layernorm.weight" for name in ("input", "post_attention")}
        assert same == {"mlp.down_proj.weight"} | (norms if refit is None else set())
        facts = store.finished()[index]
        assert facts["ignored"] == [f"model.layers.{index}.mlp.down_proj"]
        assert facts["never_called"] == []
    assert len(store.layers()) == 18 and not any("down_proj" in name for name in store.layers())


@pytest.mark.parametrize("refit", [None, REFIT], ids=["plain", "refit"])
@pytest.mark.parametrize("true_sequential", [True, False])
def test_resuming_with_a_filter_gives_the_same_bytes(tmp_path, true_sequential, refit):
    options = {"true_sequential": true_sequential, "refit": refit}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_loop(whole, **options)
    shutil.copytree(whole, broken)
    for index in (1, 2):
        for file in broken.glob(f"block-{index:05d}.*"):
            file.unlink()
    run_loop(broken, finished=1, **options)
    for index in range(3):
        name = f"block-{index:05d}.safetensors"
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


def test_layers_before_the_first_ignored_are_unchanged(tmp_path):
    """And those of the next block are not: they read what the full-precision layer gives."""
    filtered = run_loop(tmp_path / "some").layers()
    every = run_loop(tmp_path / "all", LayerFilter()).layers()
    same = {n for n, layer in filtered.items() if torch.equal(layer.codes, every[n].codes)}
    first = {name for name in filtered if name.startswith("model.layers.0.")}
    assert first <= same and len(first) == 6
    assert "model.layers.2.self_attn.q_proj" not in same


@pytest.mark.parametrize("true_sequential", [True, False])
@pytest.mark.parametrize(
    ("layers", "widths"),
    [
        (DOWN, 3 * [64, 64, 64]),
        (LayerFilter(only=("*.1.mlp.*",)), [64, 96]),
        (LayerFilter(ignore=("up_proj",), only=("up_proj", "down_proj")), 3 * [96]),
    ],
)
def test_only_needed_sites_are_measured(tmp_path, monkeypatch, layers, widths, true_sequential):
    measured = []

    def counted(width, *args, **kwargs):
        measured.append(width)
        return InputStatistics(width, *args, **kwargs)

    monkeypatch.setattr(measure, "InputStatistics", counted)
    run_loop(tmp_path, layers, true_sequential=true_sequential)
    assert measured == widths


def test_a_block_without_selected_layers_is_passed(tmp_path):
    store = run_loop(tmp_path, LayerFilter(only=("model.layers.2.*",)))
    facts = store.finished()
    assert [len(values["layers"]) for values in facts] == [0, 0, 7]
    assert [len(values["ignored"]) for values in facts] == [7, 7, 0]
    assert len(store.layers()) == 7


@pytest.mark.parametrize("true_sequential", [True, False])
def test_a_refit_skips_blocks_without_layers(tmp_path, true_sequential):
    store = run_loop(
        tmp_path,
        LayerFilter(only=("model.layers.2.*",)),
        refit=REFIT,
        true_sequential=true_sequential,
    )
    assert [len(store.read_norm_weights(index)) for index in range(3)] == [0, 0, 2]
