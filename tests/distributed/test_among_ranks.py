"""Several ranks, as threads, against one."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from distributed.rank_cases import (
    CASES,
    OPENING,
    blocks_of,
    run_case,
    save_models,
)
from distributed.rank_threads import on_threads

from q2n import run
from q2n.api import quantize_among_ranks
from q2n.distributed.agreement import require_agreement
from q2n.errors import InputError
from q2n.kernels import row_segments
from q2n.pipeline.store import RunStore


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("ranks")
    save_models(place)
    return place


@pytest.fixture
def quantize(place, monkeypatch):
    """Whole runs on a tiny model."""

    def one_at_a_time(*arguments, open_model=run.model_of):
        with OPENING:
            return open_model(*arguments)

    monkeypatch.setattr(run, "model_of", one_at_a_time)
    common = {"corpus": str(place / "text.txt"), "length": 48, "batch_size": 2, "group_size": 32}
    return lambda ranks, output, **settings: quantize_among_ranks(
        ranks, place / "llama", output, **{**common, **settings}
    )


def alone(place: Path, name: str) -> Path:
    """Where one rank has run a case, with the same products as ranks that are threads."""
    folder = place / f"one {name}"
    if not folder.exists():
        on_threads(1, lambda ranks: run_case(place, name, folder, ranks))
    return folder


@pytest.mark.parametrize(
    ("name", "size"), [*((name, 2) for name in CASES), ("held out", 3), ("gptq", 5), ("experts", 3)]
)
def test_several_ranks_come_to_what_one_does(place, tmp_path, name, size):
    one, several = alone(place, name), tmp_path / "several"
    on_threads(size, lambda ranks: run_case(place, name, several, ranks))
    assert len(blocks_of(one)) == 2 and blocks_of(several) == blocks_of(one)
    expected, found = RunStore(one).layers(), RunStore(several).layers()
    for key, layer in expected.items():
        for fact in ("routed_tokens", "dead_columns"):
            assert layer.record.get(fact) == found[key].record.get(fact)


@pytest.mark.parametrize("name", ["gptq", "activations on disk"])
def test_a_rank_that_ends_removes_its_own_folders_alone(place, tmp_path, name, monkeypatch):
    """The first rank may be about to write into one that is still empty."""
    start = RunStore.start

    def with_empty_folder(store, *arguments, **options):
        start(store, *arguments, **options)
        (store.folder / "checkpoint").mkdir()

    monkeypatch.setattr(RunStore, "start", with_empty_folder)
    shared, other = tmp_path / "shared", tmp_path / "other machine"
    on_threads(2, lambda ranks: run_case(place, name, shared, ranks))
    assert (shared / "checkpoint").is_dir()
    machines = [tmp_path / "one machine", other]
    on_threads(2, lambda ranks: run_case(place, name, machines[ranks.rank], ranks))
    assert blocks_of(machines[0]) == blocks_of(shared)
    assert not other.exists()


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", ["gptq", "held out"])
def test_batch_sizes_come_to_the_same_codes(place, tmp_path, name, batch_size):
    other = tmp_path / "other"
    on_threads(1, lambda ranks: run_case(place, name, other, ranks, batch_size))
    assert blocks_of(other) == blocks_of(alone(place, name))


def test_any_number_of_ranks_goes_on(place, tmp_path):
    one = alone(place, "gptq")
    for size in (2, 3):
        several = tmp_path / str(size)
        shutil.copytree(one, several)
        for file in several.glob("block-00001.*"):
            file.unlink()
        on_threads(size, lambda ranks, to=several: run_case(place, "gptq", to, ranks))
        assert blocks_of(several) == blocks_of(one)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"windows": 1}, "2 ranks and 1 calibration windows"),
        ({"refit": "block"}, "--refit block takes one rank"),
        ({"rewrite": "awq"}, "--rewrite awq takes one rank"),
        ({"clip": "learned"}, "--clip learned takes one rank"),
        ({"method": "ptq161", "group_size": None}, "--method ptq161 takes one rank"),
        ({"method": "spinquant", "format": "native"}, "--rotate learned takes one rank"),
    ],
)
def test_what_ranks_cannot_do_is_refused(place, tmp_path, quantize, settings, says):
    def refused(ranks) -> str:
        with pytest.raises(InputError) as caught:
            quantize(ranks, tmp_path / "out", **settings)
        return str(caught.value)

    assert all(says in text for text in on_threads(2, refused))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("own", [{"refit": "model", "refit_steps": 16}, {"output_feedback": True}])
def test_what_the_first_rank_does_alone_reaches_all(quantize, tmp_path, monkeypatch, own):
    monkeypatch.setattr(row_segments, "LONGEST", 16)
    written = []
    for size, settings in ((1, {}), (1, own), (2, own)):
        out = tmp_path / str(len(written))
        work = partial(quantize, output=out, windows=4, **settings)
        on_threads(size, work)
        written.append((out / "model.safetensors").read_bytes())
    assert written[0] != written[1] == written[2]


def test_a_rank_with_other_settings_is_named():
    def refused(ranks) -> str:
        with pytest.raises(InputError) as caught:
            require_agreement(ranks, {"bits": 3, "seed": ranks.rank // 2})
        return str(caught.value)

    texts = on_threads(3, refused)
    assert len(set(texts)) == 1 and "rank 2" in texts[0]
    assert "seed is 0 on rank 0, 1 on rank 2" in texts[0] and "bits" not in texts[0]
    on_threads(3, lambda ranks: require_agreement(ranks, json.loads('{"bits": 3}')))
