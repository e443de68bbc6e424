import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from bioren.adata.matrix import (
    check_log_scale,
    look_through,
    read_cells,
    read_embedding,
    writable,
)


@pytest.mark.parametrize(
    "form",
    [
        np.asarray,
        sparse.csr_matrix,
        sparse.csc_matrix,
        sparse.csr_array,
        lambda x: da.from_array(x, chunks=(2, 3)),
    ],
)
def test_variable_genes_are_gathered_in_their_order(form):
    x = np.arange(20.0).reshape(4, 5)
    adata = AnnData(form(x))
    adata.var_names = list("abcde")
    adata.var["highly_variable"] = [False, True, True, False, True]
    matrix = read_cells(adata).variable_matrix()
    matrix = matrix.toarray() if sparse.issparse(matrix) else matrix
    assert_array_equal(matrix, x[:, [1, 2, 4]])
    matrix = read_cells(adata, genes=pd.Index(list("eacb"))).variable_matrix()
    matrix = matrix.toarray() if sparse.issparse(matrix) else matrix
    assert_array_equal(matrix, x[:, [4, 0, 2, 1]])


def test_missing_genes_are_named():
    adata = AnnData(np.ones((2, 3)))
    adata.var_names = list("abc")
    with pytest.raises(KeyError, match="2 of the model's 3 genes are missing: x, y"):
        read_cells(adata, genes=pd.Index(list("xay")))


def test_sparse_half_precision_is_widened():
    x = sparse.csr_matrix(np.eye(4, dtype=np.float32))
    x.data = x.data.astype(np.float16)
    adata = AnnData(np.eye(4))
    adata.layers["half"] = np.eye(4)
    adata._layers["half"] = x
    assert read_cells(adata, "half").x.dtype == np.float32


@given(st.integers(0, 10_000), st.floats(2, 20))
def test_poisson_counts_look_like_counts_and_their_logarithms_do_not(seed, rate):
    counts = np.random.default_rng(seed).poisson(rate, (30, 20))
    counts[0, 0] = 2
    assert look_through(counts).like_counts
    assert look_through(sparse.csr_matrix(counts)).like_counts
    fractions = np.where(np.random.default_rng(seed).random(counts.shape) < 0.2, 0.25, 0) + counts
    assert look_through(fractions).like_counts
    assert not look_through(np.log1p(counts)).like_counts
    assert not look_through(sparse.csr_matrix(np.log1p(counts))).like_counts
    assert not look_through(counts - 1.0 - counts.max()).like_counts


@pytest.mark.parametrize("x", [np.zeros((2, 2)), np.eye(2), np.eye(2, dtype=bool), np.eye(2) / 2])
def test_nothing_above_one_says_nothing(x):
    check_log_scale(look_through(x))


def test_negative_values_are_found_in_any_form():
    x = np.eye(4)
    assert not look_through(x).negative
    x[2, 1] = -1e-3
    for form in (np.asarray, sparse.csr_matrix, sparse.csc_matrix, da.from_array):
        assert look_through(form(x)).negative


def test_an_embedding_keeps_its_values():
    adata = AnnData(np.zeros((3, 2)), obsm={"X_pca": np.arange(6).reshape(3, 2)})
    z = read_embedding(adata, "X_pca")
    assert z.dtype == np.float64
    assert_allclose(z, np.arange(6).reshape(3, 2))


def test_what_is_written_to():
    adata = AnnData(np.zeros((4, 2)), uns={"list": []})
    assert writable(adata, copy=False) is adata
    assert writable(adata, copy=True) is not adata
    view = adata[:2]
    assert writable(view, copy=False) is view
    assert not view.is_view
    view.uns["list"].append(1)
    view.obs["new"] = 1
    view.X[:] = 1
    assert adata.uns["list"] == []
    assert list(adata.obs) == []
    assert (adata.X == 0).all()
