import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.decomposition import PCA

import bioren.arrays.components
from bioren import AffineBridge
from bioren.arrays.components import Projection


def problem(seed=0, n_cells=60, n_genes=12, n_samples=3):
    """Sparse expression with a few strong components, codes, bridges and what they make of it."""
    rng = np.random.default_rng(seed)
    factors = rng.gamma(1.0, 1.0, (n_cells, 4)) * np.array([4, 3, 2, 1])
    x = factors @ rng.normal(0, 1, (4, n_genes)) + rng.normal(0, 0.1, (n_cells, n_genes))
    x = x * (x > 0)
    codes = rng.integers(0, n_samples, n_cells)
    bridges = AffineBridge(
        rng.uniform(0.5, 2, (n_samples, n_genes)), rng.normal(size=(n_samples, n_genes))
    )
    bridged = np.array([x[i] * bridges.scale[s] + bridges.shift[s] for i, s in enumerate(codes)])
    return x, codes, bridges, bridged


def fit(x, codes, bridges, center, n_components=4, seed=0):
    return Projection.fit(
        x, codes, bridges, center=center, n_components=n_components, rng=np.random.default_rng(seed)
    )


def same_up_to_sign(found, expected, **tolerance):
    signs = np.sign((found * expected).sum(axis=0))
    assert_allclose(found * signs, expected, **tolerance)


@pytest.mark.parametrize("shape", [(60, 12), (10, 30)], ids=["more cells", "more genes"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_components_are_those_of_explicitly_bridged_expression(form, shape):
    x, codes, bridges, bridged = problem(0, *shape)
    center = bridged.mean(axis=0)
    projection = fit(form(x), codes, bridges, center)
    _, _, rows = np.linalg.svd(bridged - center, full_matrices=False)
    same_up_to_sign(projection.loadings, rows[:4].T, atol=1e-7)

    z = projection.apply(form(x), codes, bridges)
    assert z.dtype == np.float32
    assert_allclose(z, (bridged - center) @ projection.loadings, rtol=1e-5, atol=1e-4)
    same_up_to_sign(z, PCA(4).fit_transform(bridged), rtol=1e-4, atol=1e-3)


def test_the_center_need_not_be_the_mean():
    x, codes, bridges, bridged = problem(1)
    center = np.full(12, 0.5)
    _, _, rows = np.linalg.svd(bridged - center, full_matrices=False)
    same_up_to_sign(fit(x, codes, bridges, center).loadings, rows[:4].T, atol=1e-7)


def test_sparse_and_dense_agree():
    x, codes, bridges, bridged = problem(2)
    center = bridged.mean(axis=0)
    dense, thin = (fit(m, codes, bridges, center) for m in (x, sparse.csr_matrix(x)))
    assert_allclose(dense.loadings, thin.loadings, atol=1e-9)
    assert_allclose(
        dense.apply(x, codes, bridges), thin.apply(sparse.csr_matrix(x), codes, bridges), atol=1e-5
    )


def test_loadings_are_orthonormal_ordered_and_their_largest_positive():
    x, codes, bridges, bridged = problem(3)
    projection = fit(x, codes, bridges, bridged.mean(axis=0))
    loadings = projection.loadings
    assert_allclose(loadings.T @ loadings, np.eye(4), atol=1e-9)
    assert (loadings[np.abs(loadings).argmax(axis=0), np.arange(4)] > 0).all()
    assert (np.diff(projection.apply(x, codes, bridges).std(axis=0)) < 0).all()


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_many_cells_are_sampled_and_all_are_projected(monkeypatch, form):
    x, codes, bridges, bridged = problem(4, n_cells=400)
    center = bridged.mean(axis=0)
    everything = fit(form(x), codes, bridges, center).loadings
    monkeypatch.setattr(bioren.arrays.components, "MAX_CELLS", 200)
    # Several blocks, so that the chosen cells are gathered from all of them.
    monkeypatch.setattr(bioren.arrays.blocks.row_blocks, "__kwdefaults__", {"entries": 30 * 12})
    projection = fit(form(x), codes, bridges, center)
    assert not np.allclose(projection.loadings, everything)  # fewer cells were seen
    assert (np.abs((projection.loadings * everything).sum(axis=0)) > 0.9).all()
    chosen = np.sort(np.random.default_rng(0).choice(400, 200, replace=False))
    _, _, rows = np.linalg.svd(bridged[chosen] - center, full_matrices=False)
    same_up_to_sign(projection.loadings, rows[:4].T, atol=1e-7)
    z = projection.apply(form(x), codes, bridges)
    assert_allclose(z, (bridged - center) @ projection.loadings, rtol=1e-5, atol=1e-4)


def test_each_cell_is_projected_for_itself():
    x, codes, bridges, bridged = problem(5)
    projection = fit(x, codes, bridges, bridged.mean(axis=0))
    z = projection.apply(x, codes, bridges)
    order = np.random.default_rng(0).permutation(60)[:7]
    assert_allclose(projection.apply(x[order], codes[order], bridges), z[order], atol=1e-5)


def test_same_seed_same_components():
    x, codes, bridges, bridged = problem(6)
    first, second = (fit(x, codes, bridges, bridged.mean(axis=0), seed=3) for _ in range(2))
    assert_array_equal(first.loadings, second.loadings)


@pytest.mark.parametrize(("shape", "n_found"), [((3, 12), 2), ((60, 3), 2), ((2, 2), 1)])
def test_no_more_components_than_cells_and_genes_allow(shape, n_found):
    x, codes, bridges, _ = problem(7, *shape)
    projection = fit(x, codes, bridges, np.zeros(shape[1]), n_components=30)
    assert projection.loadings.shape == (shape[1], n_found)


@pytest.mark.parametrize("value", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("shape", [(11, 7), (7, 11)])
def test_identical_cells_have_components_all_the_same(value, shape):
    x = np.full(shape, value)
    codes = np.zeros(len(x), dtype=int)
    bridges = AffineBridge(np.ones((1, shape[1])), np.zeros((1, shape[1])))
    projection = fit(x, codes, bridges, x.mean(axis=0), n_components=3)
    assert_allclose(projection.loadings.T @ projection.loadings, np.eye(3), atol=1e-9)
    assert_allclose(projection.apply(x, codes, bridges), 0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
def test_one_cell_or_one_gene_has_no_components(shape):
    x = np.ones(shape)
    bridges = AffineBridge(np.ones((1, shape[1])), np.zeros((1, shape[1])))
    with pytest.raises(ValueError, match="2 cells and 2 genes"):
        fit(x, np.zeros(len(x), dtype=int), bridges, np.zeros(shape[1]))
