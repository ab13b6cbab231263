"""Who solves what: a pure function."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q2n.distributed.assignment import SiteCost, assign

SITES = st.lists(
    st.builds(
        SiteCost,
        st.integers(0, 9).map(float),
        st.lists(st.integers(1, 9).map(float), min_size=1, max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=3,
)


def busiest(sites, owners, ranks) -> float:
    """By the definition: the rank that is ready last."""
    return max(
        sum(
            site.shared * (rank in own)
            + sum(c for c, o in zip(site.targets, own, strict=True) if o == rank)
            for site, own in zip(sites, owners, strict=True)
        )
        for rank in range(ranks)
    )


def best_of_all(sites, ranks) -> float:
    everywhere = [product(range(ranks), repeat=len(site.targets)) for site in sites]
    return min(busiest(sites, owners, ranks) for owners in product(*everywhere))


@settings(max_examples=60, deadline=None)
@given(SITES, st.integers(1, 3))
def test_the_busiest_rank_is_near_the_least(sites, ranks):
    owners = assign(sites, ranks)
    assert [len(own) for own in owners] == [len(site.targets) for site in sites]
    assert {rank for own in owners for rank in own} <= set(range(ranks))
    assert busiest(sites, owners, ranks) <= 1.5 * best_of_all(sites, ranks)


def test_equal_targets_of_one_site_are_shared():
    [owners] = assign([SiteCost.of(10, [40, 40])], 2)
    assert sorted(owners) == [0, 1]


def test_targets_stay_together_where_sharing_costs_more():
    [owners] = assign([SiteCost(100.0, (1.0, 1.0))], 2)
    assert owners == [0, 0]


def test_experts_stay_whole_and_even():
    owners = assign([SiteCost.of(64, [32, 32])] * 16, 4)
    assert all(len(set(own)) == 1 for own in owners)
    assert [sum(own[0] == rank for own in owners) for rank in range(4)] == [4] * 4


@pytest.mark.parametrize("ranks", [1, 5])
def test_one_target_has_one_owner(ranks):
    assert assign([SiteCost.of(8, [8])], ranks) == [[0]]
