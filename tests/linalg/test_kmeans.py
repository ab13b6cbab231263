import numpy as np
import pytest
import torch
from oracles import codebook as oracle
from sklearn.cluster import KMeans

from q2n.linalg import kmeans as room


def rows(count=30, m=50, seed=0, dtype=torch.float64):
    """Rows with a few far entries, and weights over three orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, m, generator=generator, dtype=torch.float64) ** 3
    weight = 10 ** (3 * torch.rand(m, generator=generator, dtype=torch.float64))
    return values.to(dtype), weight.to(dtype)


def start_of(row, count):
    return np.linspace(row.min(), row.max(), count)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_it_is_lloyds_algorithm(count):
    """Empty clusters included: with cubes of normal numbers most rows have some."""
    values, weight = rows()
    found = room.row_kmeans(values, weight, count, seed=0)
    for row, centroids in zip(values.numpy(), found.numpy(), strict=True):
        expected = oracle.lloyd(row, weight.numpy(), start_of(row, count))
        # differences of cumulative sums in float64, in entries of order 10
        np.testing.assert_allclose(centroids, expected, rtol=0, atol=1e-9)


def test_kmeans_equals_scikit_learn_without_empty_clusters():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(20, 200, generator=generator, dtype=torch.float64)
    weight = torch.rand(200, generator=generator, dtype=torch.float64)
    found = room.row_kmeans(values, weight, 4, seed=0)
    for row, centroids in zip(values.numpy(), found.numpy(), strict=True):
        start = start_of(row, 4).reshape(-1, 1)
        fitted = KMeans(4, init=start, n_init=1, max_iter=100, tol=1e-6)
        fitted.fit(row.reshape(-1, 1), sample_weight=weight.numpy())
        expected = np.sort(fitted.cluster_centers_.ravel())
        np.testing.assert_allclose(centroids, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [3, 9])
def test_cost_is_near_that_of_best_partition(count):
    values, weight = rows(count=40, m=12)
    found = room.row_kmeans(values, weight, count, seed=0)
    ratios = []
    for row, centroids in zip(values.numpy(), found.numpy(), strict=True):
        best = oracle.best_partition(row, weight.numpy(), count)
        ratios.append(oracle.cost(row, weight.numpy(), centroids) / best)
    assert min(ratios) > 1 - 1e-9
    if count == 3:  # k-means++ with 9 of 12 is far from it now and then
        assert np.median(ratios) < 1.1


def test_converged_centroids_are_means_of_their_points():
    values, weight = rows(m=400, dtype=torch.float32)
    found = room.row_kmeans(values, weight, 16, seed=0).double()
    values, weight = values.double(), weight.double()
    label = (values[:, :, None] - found[:, None, :]).abs().argmin(-1)
    for i in range(16):
        mine = (label == i).double() * weight
        mean = (mine * values).sum(1) / mine.sum(1)
        # the tolerance: all movements together, 1e-3 standard deviations
        assert ((mean - found[:, i]).abs() < 2e-3 * values.std(1)).all()


@pytest.mark.parametrize("count", [8, 16])
def test_enough_centroids_make_it_exact(count):
    """Also with duplicates, and with fewer entries than centroids."""
    values, weight = rows(m=6)
    values = torch.cat([values, values[:, :3]], 1)
    weight = torch.cat([weight, weight[:3]])
    found = room.row_kmeans(values, weight, count, seed=0)
    assert torch.isfinite(found).all()
    assert (found.diff(dim=1) >= 0).all()
    nearest = (values[:, :, None] - found[:, None, :]).abs().amin(-1)
    assert nearest.max() < 1e-12


def test_a_large_codebook_starts_in_every_heap():
    """16 narrow heaps, one a thousand times as heavy: drawing without regard to the distance
    from what is drawn already starts in that one, and Lloyd's steps cannot leave it."""
    generator = torch.Generator().manual_seed(0)
    heap = torch.arange(320) // 20
    values = 10.0 * heap + 0.01 * torch.randn(50, 320, generator=generator)
    weight = torch.where(heap == 3, 1000.0, 1.0)
    found = room.row_kmeans(values, weight, 16, seed=0)
    furthest = (values[:, :, None] - found[:, None, :]).abs().amin(-1).amax(1)
    assert (furthest < 1).double().mean() > 0.9


def test_an_entry_without_weight_does_not_matter():
    values, weight = rows()
    values[:, 0] = values[:, 1:].mean(1)  # not at an end: the ends are where the start comes from
    weight[0] = 0
    found = room.row_kmeans(values, weight, 4, seed=0)
    values[:, 0] = values[:, 2]
    assert torch.equal(room.row_kmeans(values, weight, 4, seed=0), found)
    assert torch.isfinite(room.row_kmeans(values, 0 * weight, 4, seed=0)).all()


def test_portions_change_nothing_seed_only_large_codebooks(monkeypatch):
    values, weight = rows()
    small, large = (room.row_kmeans(values, weight, count, seed=0) for count in (4, 16))
    assert torch.equal(room.row_kmeans(values, weight, 4, seed=1), small)
    assert not torch.equal(room.row_kmeans(values, weight, 16, seed=1), large)
    monkeypatch.setattr(room, "_ENTRIES_AT_ONCE", 100)
    assert torch.equal(room.row_kmeans(values, weight, 4, seed=0), small)
    assert torch.equal(room.row_kmeans(values, weight, 16, seed=0), large)
