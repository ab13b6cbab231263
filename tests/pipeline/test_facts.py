"""What a run notes comes back from JSON as it was."""

import json

from q2n.pipeline.facts import BlockFacts, RunStart


def through_json(record):
    return type(record).from_json(json.loads(json.dumps(record.to_json())))


def test_facts_of_a_block_come_back():
    plain = BlockFacts(block="a", seconds=1.5)
    full = BlockFacts(
        block="a",
        seconds=1.5,
        never_called=("a.q",),
        ignored=("a.k", "a.v"),
        refit_loss=(1.0, 0.5),
        model_refit_loss=(0.3, 0.25),
    )
    assert through_json(plain) == plain and through_json(full) == full
    empty = {"never_called": (), "ignored": (), "not_scaled": ()}
    assert plain.to_json() == {"block": "a", "seconds": 1.5, **empty}


def test_other_keys_of_a_block_are_skipped():
    assert BlockFacts.from_json({"block": "a", "layers": {}}) == BlockFacts(block="a")


def test_the_start_of_a_run_comes_back():
    start = RunStart(fingerprint={"bits": 3, "text": None}, labels={"model": "m"})
    assert through_json(start) == start


def test_differences_name_key_and_both_values():
    start = RunStart(fingerprint={"bits": 3, "seed": 0}, labels={})
    assert start.differences({"bits": 3, "seed": 0}) == []
    assert start.differences({"bits": 2, "new": 1}) == [
        "bits was 3, is 2",
        "new was None, is 1",
        "seed was 0, is None",
    ]
