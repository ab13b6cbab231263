"""Which windows a rank takes."""

from hypothesis import given
from hypothesis import strategies as st

from q2n.distributed.shares import share


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 12))
def test_shares_are_the_windows_in_order(windows, batch_size, size):
    shares = [share(windows, batch_size, rank, size) for rank in range(size)]
    assert [window for own in shares for window in own] == list(range(windows))
    assert size > windows or all(shares)


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 12))
def test_batches_are_those_of_one_rank(windows, batch_size, size):
    every = [*range(0, windows, batch_size)]
    if len(every) >= size:
        shares = [share(windows, batch_size, rank, size) for rank in range(size)]
        assert [start for own in shares for start in own[::batch_size]] == every
