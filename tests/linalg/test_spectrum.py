import oracles
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from q2n.errors import NumericalError
from q2n.linalg.spectrum import adam_nscl, decompose, matrix_rank, ratio

ORACLE = torch.tensor([100.0, 4, 3, 2, 1, 0, 0, 0])


def spectra():
    """Descending spectra of 3 to 30 values over several orders of magnitude."""
    exponents = st.lists(st.floats(-4, 4), min_size=3, max_size=30)
    return exponents.map(
        lambda e: torch.tensor(sorted((10**x for x in e), reverse=True), dtype=torch.float64)
    )


def gram_of_rank(rank, m, seed=0, dtype=torch.float64):
    x = torch.randn(rank, m, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x.T @ x


def test_the_worked_example():
    assert ratio(ORACLE, 0.1, "paper") == 5
    assert ratio(ORACLE, 0.1, "algorithm1") == 4
    assert ratio(ORACLE, 0.1, "released") == 4


@settings(max_examples=300, deadline=None)
@given(spectra(), st.floats(0.01, 0.9))
@example(ORACLE.double(), 0.09)
def test_the_three_indices_on_random_spectra(values, threshold):
    tails = values[1:].flip(0).cumsum(0).flip(0)
    sums = values[1:].cumsum(0)
    ties = tails[:, None] / sums  # at a tie the order of summation decides
    assume(((ties - threshold).abs() > 1e-9).all())
    paper = ratio(values, threshold, "paper")
    released = ratio(values, threshold, "released")
    assert paper == oracles.paper_start(values.tolist(), threshold)
    assert released == oracles.released_start(values.tolist(), threshold)
    assert ratio(values, threshold, "algorithm1") == paper - 1
    assert released in (paper, paper - 1)


@settings(max_examples=50, deadline=None)
@given(spectra(), st.sampled_from(["paper", "released"]))
def test_units_of_the_activations_do_not_matter(values, index):
    # powers of two scale exactly
    assert ratio(values * 2.0**-60, 0.1, index) == ratio(values, 0.1, index)


def test_spectra_without_a_tail():
    alone = torch.tensor([5.0, 0, 0, 0])
    assert ratio(alone, 0.1, "paper") == 1  # the top direction is all there is
    assert ratio(alone, 0.1, "released") == 0  # no index qualifies: nothing is done
    assert ratio(torch.zeros(4), 0.1, "paper") == 0
    assert ratio(torch.tensor([5.0]), 0.1, "paper") == 1
    assert ratio(torch.tensor([5.0]), 0.1, "released") == 0


def test_a_released_spectrum_where_no_index_qualifies():
    # of two values behind the top one the second is in neither sum, so j = 0 qualifies
    # whatever they are; of one value no j exists
    assert ratio(torch.tensor([9.0, 3, 3]), 0.1, "released") == 2
    assert ratio(torch.tensor([9.0, 3]), 0.1, "released") == 0


@pytest.mark.parametrize("how", ["eigh", "svd"])
@pytest.mark.parametrize("rank", [4, 20, 60])
def test_a_spectrum_rebuilds_its_matrix(how, rank):
    gram = gram_of_rank(rank, 20)
    spectrum = decompose(gram, how)
    assert (spectrum.values.diff() <= 0).all()
    assert (spectrum.values >= 0).all()
    rebuilt = spectrum.vectors @ spectrum.values.diag() @ spectrum.vectors.T
    # backward error of a symmetric eigensolver: a small multiple of m * eps * |G|
    torch.testing.assert_close(rebuilt, gram, rtol=0, atol=1e-12 * float(spectrum.values[0]))


def test_eigh_and_svd_project_alike():
    gram = gram_of_rank(60, 20)
    first, second = (decompose(gram, how).vectors[:, :7] for how in ("eigh", "svd"))
    torch.testing.assert_close(first @ first.T, second @ second.T, rtol=0, atol=1e-9)


def massive(m=64, dtype=torch.float32):
    """A Gram matrix whose top value is 1e8 times all others together: one token has a massive
    activation in one channel and is like the others elsewhere."""
    x = torch.randn(3 * m, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x *= torch.logspace(0, -1, m, dtype=torch.float64)
    x[0, 3] = 10**4 * x.norm()
    return (x.T @ x).to(dtype)


@pytest.mark.parametrize("how", ["eigh", "svd"])
def test_a_massive_activation_does_not_move_the_border(how):
    gram = massive()
    values, vectors = torch.linalg.eigh(gram.double())
    values, vectors = values.flip(0), vectors.flip(1)
    assert values[0] > 1e8 * values[1:].sum()
    found = decompose(gram, how)
    for threshold in (0.3, 0.1, 0.01):
        start = oracles.paper_start(values.tolist(), threshold)
        assert ratio(found.values, threshold) == start
        principal, expected = found.vectors[:, :start].double(), vectors[:, :start]
        # the rounding of the vectors to float32
        torch.testing.assert_close(
            principal @ principal.T, expected @ expected.T, rtol=0, atol=1e-6
        )


def test_a_spectrum_without_massive_values_is_found_in_its_own_dtype(monkeypatch):
    real, dtypes = torch.linalg.eigh, []
    monkeypatch.setattr(torch.linalg, "eigh", lambda g: dtypes.append(g.dtype) or real(g))
    decompose(gram_of_rank(200, 64, dtype=torch.float32))
    decompose(massive())
    assert dtypes == [torch.float32, torch.float64]


def test_failed_decomposition_retries_float64_then_names_layer(monkeypatch):
    real = torch.linalg.eigh

    def only_double(matrix):
        if matrix.dtype != torch.float64:
            raise torch.linalg.LinAlgError("did not converge")
        return real(matrix)

    gram = gram_of_rank(30, 8, dtype=torch.float32)
    monkeypatch.setattr(torch.linalg, "eigh", only_double)
    assert decompose(gram).vectors.dtype == torch.float32

    def never(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", never)
    with pytest.raises(NumericalError, match=r"layers\.0\.q_proj.*float64"):
        decompose(gram, name="layers.0.q_proj")


def test_matrix_rank():
    for rank in (1, 7, 19):
        assert matrix_rank(decompose(gram_of_rank(rank, 20)).values) == rank
    assert matrix_rank(torch.zeros(5)) == 0


def test_adam_nscl():
    assert adam_nscl(torch.tensor([1000.0, 60, 49, 2, 1])) == 2
    # zeros of a singular matrix do not empty the null space
    assert adam_nscl(torch.tensor([1000.0, 60, 49, 2, 1, 0, 0])) == 2
    assert adam_nscl(torch.zeros(3)) == 0


def test_tail_energy():
    spectrum = decompose(torch.tensor([4.0, 3, 2, 1]).diag())
    assert spectrum.tail_energy(2) == pytest.approx(0.3, abs=1e-6)
    assert decompose(torch.zeros(3, 3)).tail_energy(0) == 0
