import numpy as np
import pytest
import torch

from q2n.errors import NumericalError
from q2n.linalg.factor import feedback, pending


def gram_of(tokens, m, seed=0, decay=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, m, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(0, -decay, m, dtype=torch.float64)
    return x.T @ x


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(("tokens", "decay"), [(100, 0.0), (100, 3.0), (5, 0.0)])
def test_feedback_is_what_the_inverse_would_give(tokens, decay, descending):
    gram = gram_of(tokens, 24, decay=decay)
    found = feedback(gram, 0.01, descending=descending)
    order = found.order.numpy()
    if descending:
        assert (np.diff(np.diag(gram.numpy())[order]) <= 0).all()
    else:
        assert (order == np.arange(24)).all()
    damped = gram.numpy() + 0.01 * np.diag(gram.numpy()).mean() * np.eye(24)
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    root = np.linalg.inv(upper)  # the factor R of H = R R^T
    expected = root / np.diag(root) - np.eye(24)
    # the explicit inverse loses cond(H) * eps; cond is at most m / damping = 2400
    np.testing.assert_allclose(found.matrix.numpy(), expected, rtol=0, atol=1e-10)
    assert found.damping == 0.01


def test_pending_equals_working_copy_of_textbook_loop():
    generator = torch.Generator().manual_seed(1)
    gram = gram_of(40, 12)
    weight, quantized = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64)
    found = feedback(gram, 0.01)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped)).T
    work = weight.clone()
    for j in range(7):
        error = (work[:, j] - quantized[:, j]) / upper[j, j]
        work -= error[:, None] * upper[j]
    got = pending(weight.T.contiguous(), (weight - quantized).T.contiguous(), found.matrix, 7, 11)
    torch.testing.assert_close(got.T, work[:, 7:11], rtol=0, atol=1e-11)


def test_dead_columns_touch_no_other():
    gram = gram_of(50, 10)
    gram[[3, 8]] = 0
    gram[:, [3, 8]] = 0
    found = feedback(gram, 0.01)
    assert found.dead.nonzero().flatten().tolist() == [3, 8]
    assert (found.matrix[[3, 8]] == 0).all()
    assert (found.matrix[:, [3, 8]] == 0).all()
    live = [i for i in range(10) if i not in (3, 8)]
    alone = feedback(gram[live][:, live], 0.01)
    torch.testing.assert_close(found.matrix[live][:, live], alone.matrix, rtol=0, atol=1e-12)


def test_damping_rises_until_matrix_is_positive_definite():
    gram = gram_of(100, 8).float()
    # one eigenvalue at -5 % of the mean diagonal: 0.01 is too little, 0.1 is enough
    mean = float(gram.diagonal().mean())
    values, vectors = torch.linalg.eigh(gram)
    values[0] = -0.05 * mean
    found = feedback(vectors @ values.diag() @ vectors.T, 0.01)
    assert found.damping == pytest.approx(0.1)
    assert torch.isfinite(found.matrix).all()


def test_no_damping_at_all_is_repaired_too():
    gram = gram_of(3, 8).float()
    gram -= 1e-5 * gram.diagonal().mean() * torch.eye(8)
    assert feedback(gram, 0.0).damping == pytest.approx(1e-4)


def test_a_matrix_that_no_damping_repairs_is_named():
    gram = gram_of(100, 8).float()
    gram[2, 5] = gram[5, 2] = 50 * gram.diagonal().max()
    with pytest.raises(NumericalError, match=r"h\.3\.down.*0\.01, 0\.1, 1, even in float64"):
        feedback(gram, 0.01, name="h.3.down")
