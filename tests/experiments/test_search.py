"""Grid search and coordinate descent on functions whose least value is known."""

import json
from itertools import product

import pytest

from q2n.experiments.search import coordinate_descent, grid
from q2n.experiments.trials import Trials

OVER = {"x": [0, 1, 2, 3], "y": [0, 1, 2]}


def counting(function):
    calls = []

    def score(choice):
        calls.append(tuple(choice.values()))
        return float(function(**choice))

    return score, calls


def test_a_grid_tries_all_and_finds_the_least():
    score, calls = counting(lambda x, y: (x - 2) ** 2 + (y - 1) ** 2 - 3 * (x == 3) * (y == 0))
    assert grid(OVER, score) == {"x": 3, "y": 0}
    assert sorted(calls) == sorted(product(*OVER.values()))


def test_descent_finds_the_least_of_what_is_separable_in_fewer_trials():
    score, calls = counting(lambda x, y: (x - 2) ** 2 + (y - 1) ** 2)
    assert coordinate_descent(OVER, score) == {"x": 2, "y": 1}
    assert len(calls) == len(set(calls)) == 9  # 4 + 2, and in the second round 3 less what is known


def test_descent_goes_on_while_a_round_changes_something():
    score, _ = counting(lambda x, y: abs(x - y) * 10 - x)  # a valley along x = y
    best = coordinate_descent(OVER, score)
    others = [{**best, name: value} for name in OVER for value in OVER[name]]
    assert all(score(best) <= score(other) for other in others)


def test_equal_scores_keep_the_first_value():
    assert coordinate_descent(OVER, lambda choice: 1.0) == {"x": 0, "y": 0}


def test_a_value_may_be_a_list():
    over = {"ignore": [["a"], ["b"], []]}
    assert coordinate_descent(over, lambda choice: float(len(choice["ignore"]))) == {"ignore": []}


def test_a_trial_is_known_to_the_next_process(tmp_path):
    choice, file = {"damping": 0.1}, tmp_path / "tried.json"
    assert Trials(file).once(lambda _: 0.5)(choice) == 0.5
    assert Trials(file).once(lambda _: pytest.fail("tried again"))(choice) == 0.5


@pytest.mark.parametrize(
    "text", ["", '[{"damping": 0.1,', "{}", "[1]", "[{}]", '[{"divergence": NaN}]', "[" * 100_000]
)
def test_a_damaged_file_of_trials_is_begun_anew(text, tmp_path):
    file = tmp_path / "tried.json"
    file.write_text(text)
    assert Trials(file).once(lambda _: 0.5)({"damping": 0.1}) == 0.5
    assert json.loads(file.read_text()) == [{"damping": 0.1, "divergence": 0.5}]
