import json

import numpy as np
import pytest
import torch
from oracles.quarot import kronecker_product

from q2n.linalg.kronecker import Factor, KroneckerMatrix
from q2n.linalg.random_orthogonal import haar_factor, mixing_factors, random_rotation, random_signs


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(count, size, seed):
    return torch.linalg.qr(normal(count, size, size, seed=seed))[0]


def order(size, seed):
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def written_out(matrix):
    """The dense matrix, axis by axis: one block along each line of the array."""
    sizes = [factor.size for factor in matrix.factors]
    full = np.eye(matrix.size)
    if matrix.signs is not None:
        full = np.diag(matrix.signs.double().numpy())
    if matrix.into is not None:
        full = full[matrix.into.numpy()]
    places = np.arange(matrix.size).reshape(sizes)
    for axis, factor in enumerate(matrix.factors):
        if factor.blocks is None:
            continue
        product = np.zeros((matrix.size, matrix.size))
        lines = np.moveaxis(places, axis, -1).reshape(-1, factor.size)
        for index, line in enumerate(lines):
            block = factor.blocks[index % len(factor.blocks)].numpy()
            product[np.ix_(line, line)] = block
        full = product @ full
    return full if matrix.out is None else full[matrix.out.numpy()]


CASES = {
    "hadamard": KroneckerMatrix(mixing_factors(48, 0), random_signs(48, 1)),
    "three": KroneckerMatrix((Factor.hadamard(12), Factor.hadamard(4), Factor.hadamard(2))),
    "heads": KroneckerMatrix((haar_factor(9, 0), Factor.identity(8))),
    "not symmetric": KroneckerMatrix((Factor.hadamard(2), haar_factor(5, 0))),
    "odd": KroneckerMatrix(mixing_factors(36 // 2, 5)),
    "permuted": random_rotation(30, "kronecker", 1),
    "blocks": random_rotation(30, "blocks", 1),
    "unpermuted blocks": random_rotation(30, "blocks_unpermuted", 1),
    "everything": KroneckerMatrix(
        (Factor.hadamard(4), Factor.dense(orthogonal(12, 5, 0)), haar_factor(3, 2)),
        random_signs(60, 3),
        order(60, 4),
        order(60, 5),
    ),
    "blocks in the middle": KroneckerMatrix(
        (Factor.hadamard(4), Factor.dense(orthogonal(12, 5, 0)), Factor.identity(3)),
        out=order(60, 6),
    ),
    "only permutations": KroneckerMatrix((Factor.identity(12),), None, order(12, 1), order(12, 2)),
    "nothing": KroneckerMatrix(()),
}


@pytest.mark.parametrize("name", CASES)
def test_the_four_products_are_those_written_out(name):
    matrix = CASES[name]
    full = written_out(matrix)
    x, w = normal(3, 5, matrix.size), normal(matrix.size, 7, seed=1)
    # float64 sums of at most 60 products of numbers around 1
    same = {"rtol": 0, "atol": 1e-13}
    np.testing.assert_allclose(full @ full.T, np.eye(matrix.size), **same)
    np.testing.assert_allclose(matrix.apply(x), x.numpy() @ full.T, **same)
    np.testing.assert_allclose(matrix.undo(x), x.numpy() @ full, **same)
    np.testing.assert_allclose(matrix.apply_to_outputs(w), full @ w.numpy(), **same)
    np.testing.assert_allclose(matrix.undo_at_outputs(w), full.T @ w.numpy(), **same)


def test_it_is_the_kronecker_product_of_its_factors():
    for name in ("hadamard", "three", "heads", "not symmetric"):
        matrix = CASES[name]
        factors = [f.size if f.blocks is None else f.blocks[0] for f in matrix.factors]
        np.testing.assert_allclose(
            written_out(matrix), kronecker_product(factors, matrix.signs), atol=1e-15
        )


@pytest.mark.parametrize("name", ["hadamard", "everything"])
def test_weights_are_rounded_once_from_float64(name, monkeypatch):
    matrix = CASES[name]
    weight, scale = normal(9, matrix.size).float(), normal(matrix.size, seed=1).float()
    inputs = matrix.apply(weight.double() * scale.double()).float()
    outputs = matrix.apply_to_outputs(weight.T.double()).float()
    monkeypatch.setattr("q2n.linalg.kronecker._VECTORS", 4)
    assert torch.equal(matrix.apply_exactly(weight, scale), inputs)
    assert torch.equal(matrix.apply_exactly(weight), matrix.apply(weight.double()).float())
    assert torch.equal(matrix.apply_to_outputs_exactly(weight.T), outputs)


@pytest.mark.parametrize("name", ["hadamard", "everything"])
def test_half_precision_is_computed_in_float32(name):
    matrix = CASES[name]
    x = normal(4, matrix.size).bfloat16()
    for product in (matrix.apply, matrix.undo):
        assert torch.equal(product(x), product(x.float()).bfloat16())
    for product in (matrix.apply_to_outputs, matrix.undo_at_outputs):
        assert torch.equal(product(x.T), product(x.T.float()).bfloat16())


@pytest.mark.parametrize("name", CASES)
def test_a_matrix_survives_json(name):
    matrix = CASES[name]
    again = KroneckerMatrix.from_json(json.loads(json.dumps(matrix.to_json())))
    x = normal(2, matrix.size)
    assert torch.equal(matrix.apply(x), again.apply(x))
    assert torch.equal(matrix.undo(x), again.undo(x))


def test_an_identity_is_known_by_its_parts():
    same = KroneckerMatrix((Factor.identity(3), Factor.identity(4)))
    assert same.is_identity
    assert not KroneckerMatrix(same.factors, signs=torch.ones(12)).is_identity
    assert not KroneckerMatrix((Factor.identity(3), Factor.hadamard(4))).is_identity


def test_a_ready_matrix_gives_the_same():
    matrix = CASES["everything"]
    x = normal(3, 60).bfloat16()
    ready = matrix.ready_for(x)
    assert {part.dtype for part in (*(f.blocks for f in ready.factors), ready.signs)} == {
        torch.float32
    }
    assert ready.ready_for(x) is ready
    assert torch.equal(ready.apply(x), matrix.apply(x))
