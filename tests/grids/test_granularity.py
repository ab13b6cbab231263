import pytest

from q2n.errors import InputError
from q2n.grids.granularity import PerChannel, PerGroup


def test_sizes():
    assert PerChannel().group_size(576, "q") == 576
    assert PerGroup(64).group_size(576, "q") == 64
    assert PerGroup(128, ragged=True).group_size(576, "q") == 128
    assert PerGroup(1024, ragged=True).group_size(576, "q") == 576


def test_refused_size_names_layer_width_and_divisors():
    with pytest.raises(InputError) as raised:
        PerGroup(128).group_size(576, "layers.0.q_proj")
    for part in ("layers.0.q_proj", "128", "576", "64", "96", "288", "ragged"):
        assert part in str(raised.value)
    assert " 128," not in str(raised.value).split("group sizes that do:")[1]


def test_an_empty_group_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        PerGroup(0)
