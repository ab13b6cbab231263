"""Results that are found again, and only under the same conditions."""

import json

import pytest
from evaluation_result import result
from tiny import save_tiny

from q2n.errors import InputError
from q2n.evaluation.tasks.cache import ResultCache, checkpoint_digest


def test_a_result_is_found_under_its_key_alone(tmp_path):
    file = tmp_path / "cache.json"
    ResultCache(file).add({"task": "a", "limit": 1}, result("a", 0.1))
    ResultCache(file).add({"task": "a", "limit": 2}, result("a", 0.2))
    ResultCache(file).add({"task": "a", "limit": 1}, result("a", 0.3))
    cache = ResultCache(file)
    assert cache.find({"limit": 1, "task": "a"}).acc == 0.3
    assert cache.find({"task": "a", "limit": 2}).acc == 0.2
    assert cache.find({"task": "a", "limit": None}) is None
    assert len(json.loads(file.read_text())["results"]) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "other"}', '{"results": []}'])
def test_another_file_is_refused_and_left_alone(tmp_path, text):
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(InputError, match="mine.json is not a cache of task results"):
        ResultCache(file)
    assert file.read_text() == text


def test_a_cache_that_cannot_be_written_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        ResultCache(tmp_path / "nowhere" / "cache.json")


def test_an_interrupted_write_leaves_the_old_results(tmp_path, monkeypatch):
    file = tmp_path / "cache.json"
    ResultCache(file).add({"task": "a"}, result("a", 0.1))

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("q2n.evaluation.tasks.cache.os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        ResultCache(file).add({"task": "b"}, result("b", 0.2))
    assert ResultCache(file).find({"task": "a"}).acc == 0.1
    assert [x.name for x in tmp_path.iterdir() if not x.name.endswith(".lock")] == ["cache.json"]


def test_a_checkpoint_is_known_by_its_bytes(tmp_path):
    folder = save_tiny(tmp_path / "model")
    before = checkpoint_digest(folder)
    (folder / "README.md").write_text("about")
    assert checkpoint_digest(folder) == before
    config = folder / "config.json"
    config.write_text(config.read_text() + " ")
    assert checkpoint_digest(folder) != before
    assert checkpoint_digest(save_tiny(tmp_path / "other", seed=1)) != before
