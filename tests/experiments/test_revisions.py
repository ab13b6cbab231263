"""Revisions of a model on the hub are models of their own, each with its own original."""

import pytest
from experiments.plans import records, written
from huggingface_hub import constants
from tiny import save_tiny, tiny_text

from q2n import evaluate
from q2n.experiments import texts
from q2n.experiments.run import Request, run_sweep
from q2n.experiments.texts import Original
from q2n.logging import Reporter

NAMES = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def snapshots(tmp_path, monkeypatch):
    """The hub's cache, with two revisions of one model in it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    place = tmp_path / "hub" / "models--some--tiny"
    (place / "refs").mkdir(parents=True)
    for seed, (name, commit) in enumerate(NAMES.items()):
        (place / "refs" / name).write_text(commit)
        save_tiny(place / "snapshots" / commit, layers=1, seed=seed)
    return place / "snapshots"


@pytest.fixture
def request_of(tmp_path):
    def of(**settings) -> Request:
        (tmp_path / "text.txt").write_text(tiny_text(40))
        on = {"ppl": str(tmp_path / "text.txt"), "length": 16, "windows": 2}
        usual = {"model": "some/tiny", "method": "rtn", "bits": 8}
        axes = {} if "revision" in settings else {"revision": list(NAMES)}
        values = {"settings": {**usual, **settings}, "axes": axes, "texts": {"text": on}}
        return Request(plan=written(values, tmp_path))

    return of


def test_each_is_compared_with_its_own_original(snapshots, request_of, tmp_path):
    assert run_sweep(request_of(), tmp_path / "runs").done == 4
    found = {(x.labels["revision"], x.is_original): x for x in records(tmp_path / "runs")}
    for name, commit in NAMES.items():
        on = {"ppl": str(tmp_path / "text.txt"), "length": 16, "windows": 2}
        own = evaluate(snapshots / commit, **on).perplexity
        assert found[name, True].texts[0].perplexity == own
        assert found[name, False].texts[0].divergence < 0.01  # nats: 8 bits, and its own original


def test_an_original_of_a_revision_has_a_key_of_its_own(request_of):
    default, other = (request_of(revision=name).cells() for name in (None, "v2"))
    assert default[0].key != other[0].key and default[1].key != other[1].key
    assert [cell.original.revision for cell in other] == ["v2", "v2"]


@pytest.mark.usefixtures("snapshots")
def test_code_of_the_checkpoint_runs_for_the_original_too(request_of, monkeypatch):
    let, opened = [], texts.open_text

    def noted(folder, tokenizer, on, reporter):
        let.append(on.trust_remote_code)
        return opened(folder, tokenizer, on, reporter)

    monkeypatch.setattr(texts, "open_text", noted)
    for trusted in (True, False):
        cell = request_of(trust_remote_code=trusted).cells()[0]
        Original(cell.original, cell.texts, Reporter()).windows("text")
    assert let == [True, False]
