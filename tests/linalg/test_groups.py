import pytest
import torch

from q2n.linalg.groups import by_column, group_of_column, in_groups, whole_and_ragged

CUTS = [(12, 4), (12, 12), (10, 4), (3, 4), (7, 1)]


def matrix(columns):
    return torch.arange(1, 2 * columns + 1).view(2, columns)


@pytest.mark.parametrize(("columns", "size"), CUTS)
def test_groups_are_filled_up_with_zeros(columns, size):
    values = matrix(columns)
    groups = in_groups(values, size)
    assert groups.shape == (2, -(-columns // size), size)
    assert torch.equal(groups.flatten(1)[:, :columns], values)
    assert not groups.flatten(1)[:, columns:].any()


def test_whole_groups_are_a_view_at_any_rank():
    values = torch.randn(2, 3, 12)
    groups = in_groups(values, 4)
    assert groups.shape == (2, 3, 3, 4) and groups.data_ptr() == values.data_ptr()
    assert torch.equal(groups[1, 2, 1], values[1, 2, 4:8])


@pytest.mark.parametrize(("columns", "size"), CUTS)
def test_a_ragged_group_stands_by_itself(columns, size):
    values = matrix(columns)
    parts = whole_and_ragged(values, size)
    assert torch.equal(torch.cat([part.flatten(1) for part in parts], 1), values)
    assert [part.shape[2] for part in parts[1:]] == ([columns % size] if columns % size else [])
    assert parts[0].shape == (2, columns // size, size)


@pytest.mark.parametrize(("columns", "size"), CUTS)
def test_each_column_gets_the_value_of_its_group(columns, size):
    group = group_of_column(columns, size, torch.device("cpu"))
    assert group.tolist() == [column // size for column in range(columns)]
    values = torch.randn(2, -(-columns // size))
    assert torch.equal(by_column(values, size, columns), values[:, group])
