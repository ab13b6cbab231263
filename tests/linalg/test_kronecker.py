import json

import numpy as np
import pytest
import torch
from oracles.quarot import dense

from q2n.linalg.kronecker import Factor, Rotation, from_json, mixing_factors, random_signs


def _dense(rotation):
    factors = [f.size if f.matrix is None else f.matrix.double() for f in rotation.factors]
    return dense(factors, rotation.signs)


def _cases():
    return {
        "hadamard": Rotation(mixing_factors(48, 0), random_signs(48, 1)),
        "three": Rotation((Factor.hadamard(12), Factor.hadamard(4), Factor.hadamard(2))),
        "heads": Rotation((Factor.haar(9, 0), Factor.identity(8))),
        "not symmetric": Rotation((Factor.hadamard(2), Factor.haar(5, 0))),
        "odd": Rotation(mixing_factors(36 // 2, 5)),
        "nothing": Rotation(()),
    }


@pytest.mark.parametrize("name", _cases())
def test_it_is_the_product_written_out(name):
    rotation = _cases()[name]
    full, size = _dense(rotation), rotation.size
    x = torch.randn(3, 5, size, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(full @ full.T, np.eye(size), atol=1e-6)  # float32 factors
    # a few eps of float32 for vectors of length about sqrt(size)
    np.testing.assert_allclose(rotation.apply(x), x.double().numpy() @ full.T, atol=3e-6)
    weight = torch.randn(size, 7, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(
        rotation.apply_to_outputs(weight), full @ weight.double().numpy(), atol=3e-6
    )


def test_half_precision_is_computed_in_float32():
    rotation = _cases()["hadamard"]
    x = torch.randn(4, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(rotation.apply(x), rotation.apply(x.float()).bfloat16())


def test_a_rotation_survives_json():
    rotation = Rotation((Factor.haar(9, 3), Factor.identity(2), Factor.hadamard(12)))
    again = from_json(json.loads(json.dumps([f.to_json() for f in rotation.factors])))
    x = torch.randn(2, rotation.size, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(rotation.apply(x), again.apply(x))


def test_haar_matrices_follow_the_seed_and_have_no_preferred_sign():
    assert torch.equal(Factor.haar(5, 1).matrix, Factor.haar(5, 1).matrix)
    assert not torch.equal(Factor.haar(5, 1).matrix, Factor.haar(5, 2).matrix)
    # the mean of 150 entries of variance 1/4 has standard error 0.04; without the sign fix the
    # first entry of every matrix is negative
    corner = torch.stack([Factor.haar(4, seed).matrix[0, 0] for seed in range(150)])
    assert abs(float(corner.mean())) < 0.16
