import pytest
import torch

from q2n.linalg.triangle import add_gram, panels, symmetric, triangle_size


@pytest.mark.parametrize("width", [1, 5, 6, 7, 40])
def test_panels_cover_every_column_once(width):
    columns = [column for i, j in panels(width) for column in range(i, j)]
    assert columns == list(range(width))


@pytest.mark.parametrize("width", [1, 5, 13])
def test_a_sum_of_triangles_is_the_gram_matrix(width):
    x = torch.randn(30, width, dtype=torch.float64)
    triangle = torch.zeros(triangle_size(width), dtype=torch.float64)
    for part in x.split(11):
        add_gram(triangle, part)
    gram = symmetric(triangle, width, torch.float64)
    assert torch.equal(gram, gram.T)
    torch.testing.assert_close(gram, x.T @ x, rtol=0, atol=1e-13)
