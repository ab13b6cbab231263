"""Spectra of inputs beside numpy's, of inputs that hooks collect from the whole model."""

import weakref

import numpy
import oracles
import pytest
import torch
from tiny import save_tiny, tiny_model, tiny_text, tiny_tokenizer

from q2n.config.opening import calibration_of, model_of, texts_of
from q2n.config.settings import RunSettings
from q2n.errors import InputError
from q2n.experiments import spectra
from q2n.experiments.spectra import thinned
from q2n.linalg.statistics import InputStatistics
from q2n.models.blocks import BlockwiseModel
from q2n.transforms.model_changes import ModelChanges

SITES = {
    "self_attn.q_proj": 64,
    "self_attn.o_proj": 64,
    "mlp.gate_proj": 64,
    "mlp.down_proj": 96,
}


def spectra_of(*given, **named):
    return spectra.spectra_of(*given, **named).records


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Of a tiny model. The text has fewer different words than the first layer has channels, so
    that its Gram matrix is singular."""
    folder = tmp_path_factory.mktemp("spectra")
    (folder / "text.txt").write_text(tiny_text())
    return {
        "model": str(save_tiny(folder / "model")),
        "corpus": str(folder / "text.txt"),
        "windows": 6,
        "length": 24,
        "seed": 3,
        "device": "cpu",
    }


def collected_inputs(settings, names):
    """The inputs of linears, [tokens, width], as hooks on the whole model see them."""
    run = RunSettings(**settings)
    opened = model_of(run, run.model, ModelChanges())
    windows = calibration_of(run, opened, texts_of(run, opened))
    model, seen = opened.in_memory(opened.source), {}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0].detach())
        )
    with torch.no_grad():
        model(windows.tokens)
    return {name: torch.cat(seen[name]).flatten(0, 1).double().numpy() for name in names}


def test_values_and_cuts_are_those_of_the_full_precision_inputs(settings):
    records = spectra_of({**settings, "threshold": 0.02}, ["*"])
    names = [f"model.layers.{block}.{site}" for block in range(3) for site in SITES]
    assert [record.layer for record in records] == names
    inputs = collected_inputs(settings, names)
    assert records[0].cuts["matrix_rank"] < records[0].width
    for record in records:
        x = inputs[record.layer]
        values = numpy.linalg.eigvalsh(x.T @ x / len(x))[::-1]
        assert record.width == len(values) == SITES[record.layer.split(".", 3)[-1]]
        # G is a sum in float32, and so is its decomposition: both are off by eps of the top value.
        # Six digits are kept.
        numpy.testing.assert_allclose(
            record.values, values[record.places], rtol=5e-6, atol=2e-6 * values[0]
        )
        assert record.cuts["ratio"] == oracles.paper_start(values.tolist(), 0.02)
        rank = (values > values[0] * len(values) * numpy.finfo(numpy.float32).eps).sum()
        assert record.cuts["matrix_rank"] == rank
        assert record.cuts["adam_nscl"] == (values > 50 * values[rank - 1]).sum()


def test_what_a_record_says_of_its_layer(settings):
    [record] = spectra_of(settings, ["*.1.mlp.up_proj"])
    assert (record.layer, record.kind) == ("model.layers.1.mlp.up_proj", "up_proj")
    assert (record.block, record.width, len(record.values)) == (1, 64, len(record.places))


def test_two_linears_of_one_word_in_a_block_are_two_kinds(settings, tmp_path):
    model = str(save_tiny(tmp_path / "gpt2", "gpt2"))
    records = spectra_of({**settings, "model": model}, ["*c_proj"])
    assert {(record.kind, record.width) for record in records} == {
        ("attn.c_proj", 64),
        ("mlp.c_proj", 96),
    }


def test_patterns_choose_the_layers_and_ignore_wins(settings):
    records = spectra_of({**settings, "ignore": ["o_proj"]}, ["*.0.*", "*.2.self_attn.*"])
    assert [(record.block, record.kind) for record in records] == [
        (0, "q_proj"),
        (0, "gate_proj"),
        (0, "down_proj"),
        (2, "q_proj"),
    ]
    with pytest.raises(InputError, match=r"only '\*\.9\.\*' matches no layer"):
        spectra_of(settings, ["*.9.*"])


@pytest.mark.parametrize(
    "other",
    [
        {"method": "rtn"},
        {"method": "gptq", "bits": 2, "nullspace": "released"},
        {"batch_size": 2},
        {"activations": "disk"},
        {"true_sequential": False},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_else_is_set_does_not_matter(settings, other):
    usual, records = (spectra_of({**settings, **x}, ["*.1.*"]) for x in ({}, other))
    for one, another in zip(usual, records, strict=True):
        assert one.cuts == another.cuts
        atol = 1e-6 * one.values[0]  # and six digits are kept
        numpy.testing.assert_allclose(one.values, another.values, rtol=1e-5, atol=atol)


def test_a_lower_threshold_keeps_more(settings):
    few, many = (
        spectra_of({**settings, "threshold": threshold}, ["*.0.*"]) for threshold in (0.5, 0.01)
    )
    assert all(a.cuts["ratio"] < b.cuts["ratio"] for a, b in zip(few, many, strict=True))
    assert all(a.values == b.values for a, b in zip(few, many, strict=True))


def test_a_model_object_comes_with_its_tokenizer(settings):
    named = spectra_of(settings, ["*.0.*"])
    given = spectra_of(
        {**settings, "model": "another"},
        ["*.0.*"],
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
    )
    assert [record.cuts for record in given] == [record.cuts for record in named]


def test_blocks_after_the_last_one_asked_for_are_not_loaded(settings, monkeypatch):
    loaded, load = [], BlockwiseModel.load_block
    monkeypatch.setattr(
        BlockwiseModel,
        "load_block",
        lambda self, index: loaded.append(index) or load(self, index),
    )
    spectra_of(settings, ["*.1.*"])
    assert set(loaded) == {0, 1}


def test_one_gram_matrix_is_in_memory_at_a_time(settings, monkeypatch):
    alive = []

    class Watched(InputStatistics):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            assert [one() for one in alive if one() is not None] == []
            alive.append(weakref.ref(self))

    monkeypatch.setattr("q2n.pipeline.measure.InputStatistics", Watched)
    spectra_of(settings, ["*"])
    assert len(alive) == 3 * len(SITES)


@pytest.mark.parametrize("width", [1, 16, 17, 576, 1536, 28672])
def test_the_first_and_the_last_places_are_kept_and_the_others_are_even_in_log_rank(width):
    places = thinned(width)
    assert places == sorted(set(places)) and places[-1] == width - 1 and len(places) <= 216
    assert places[:16] == list(range(min(width, 16)))
    ranks = numpy.array(places) + 1
    steps = numpy.diff(ranks)[ranks[1:] > 16]
    even = ranks[:-1][ranks[1:] > 16] * ((width / 16) ** (1 / 200) - 1)
    assert (steps <= numpy.maximum(even, 0) + 1.5).all()
