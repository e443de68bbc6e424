import numpy as np
import pytest
from anndata import AnnData
from numpy.testing import assert_allclose
from scipy import sparse, stats

import bioren
from bioren import AffineBridge, Moments
from bioren.effects.errors import NORMAL, variance_of_squares
from bioren.effects.state_profile import StateProfile

NORMAL_90 = stats.norm.ppf(0.95)


def profile(level, variance):
    """A reference of states that weigh the same."""
    level, variance = np.atleast_2d(level).astype(float), np.atleast_2d(variance).astype(float)
    count = np.full(len(level), 100.0)
    return StateProfile(np.full(len(level), 1 / len(level)), Moments(count, level, variance * 100))


def found(x, share, of, codes=None, bridges=None):
    codes = np.zeros(x.shape[0], dtype=np.intp) if codes is None else codes
    bridges = bridges or AffineBridge.identity(1, x.shape[1])
    return variance_of_squares(x, codes, share, bridges=bridges, profile=of)


@pytest.mark.parametrize("p", [0.5, 0.1, 0.01])
def test_a_gene_that_is_on_or_off_has_the_kurtosis_of_the_binomial(p):
    n = 1000
    x = np.zeros((n, 1))
    x[: int(p * n)] = 3.0
    q = 1 - p
    expected = 1 / (p * q) - 4  # kurtosis less one
    ones = np.ones((n, 1))
    assert_allclose(found(x, ones, profile([3 * p], [9 * p * q])), expected, atol=1e-9)
    assert_allclose(
        found(sparse.csr_matrix(x), ones, profile([3 * p], [9 * p * q])), expected, atol=1e-9
    )


def test_normal_values_have_two_whatever_their_state_and_sample():
    rng = np.random.default_rng(0)
    n, level, sd = 200_000, np.array([[0.0], [5.0]]), np.array([[1.0], [1.0]])
    state, codes = rng.integers(2, size=n), rng.integers(2, size=n)
    x = level[state] + sd[state] * rng.normal(size=(n, 1))
    x[codes == 1] = 2 * x[codes == 1] + 7
    bridges = AffineBridge(np.array([[1.0], [0.5]]), np.array([[0.0], [-3.5]]))
    of = profile(level, sd**2)
    assert_allclose(found(x, np.eye(2)[state], of, codes, bridges), NORMAL, rtol=0.05)


def test_a_constant_gene_counts_as_normal():
    x, ones = np.full((10, 1), 4.0), np.ones((10, 1))
    assert_allclose(found(x, ones, profile([4.0], [0.0])), NORMAL)


@pytest.mark.parametrize(
    ("rate", "standardize"), [(0.02, False), (0.2, False), (2.0, False), (0.2, True), (2.0, True)]
)
def test_intervals_hold_planted_effects_of_rare_genes_too(rate, standardize):
    rng = np.random.default_rng(int(100 * rate))
    n, n_genes = 2000, 600
    counts = stats.nbinom(1, 1 / (1 + rate))
    x = np.log1p(counts.rvs((2 * n, n_genes), random_state=rng))
    values = np.arange(200)
    mean = np.log1p(values) @ counts.pmf(values)
    sd = np.sqrt(np.square(np.log1p(values) - mean) @ counts.pmf(values))
    r, shift = np.exp(rng.normal(0, 0.2, n_genes)), sd * rng.normal(0, 0.3, n_genes)
    x[:n] = r * x[:n] + shift
    adata = AnnData(x)
    adata.obs["batch"] = np.repeat(["planted", "reference"], n)
    bioren.pp.bridge(adata, "batch", reference="reference", standardize=standardize)
    table = bioren.tl.batch_effects(adata)
    table = table[table["sample"] == "planted"]
    for name, planted in {"r": r, "d": ((r - 1) * mean + shift) / sd}.items():
        missed = np.abs(table[name] - planted) / table[f"standard_error_{name}"]
        assert 0.85 < (missed < NORMAL_90).mean() < 0.95, name
