"""Normalization and variable genes, against the formula and against scanpy's own steps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from bioren.adata.normalize import MIN_CELLS, mark_variable_genes, normalize_counts

Matrix = np.ndarray | sparse.csr_matrix | sparse.csc_matrix


def counts(*, cells: tuple[int, ...] = (50, 40), genes: int = 60, seed: int = 0) -> AnnData:
    """Return dense Poisson counts with so many cells per sample, none of them empty."""
    rng = np.random.default_rng(seed)
    sample = np.repeat(np.arange(len(cells)), cells)
    mean = rng.gamma(0.5, 4, size=genes) * rng.lognormal(0, 0.6, size=(len(sample), genes))
    x = rng.poisson(mean).astype(np.float32)
    x[:, 0] += 1
    obs = pd.DataFrame(
        {"sample": [f"s{s}" for s in sample]}, index=[f"c{i}" for i in range(len(sample))]
    )
    return AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(genes)]))


def dense(x: Matrix) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else x


def by_hand(x: np.ndarray) -> np.ndarray:
    out = np.empty(x.shape)
    for i, cell in enumerate(x.astype(float)):
        out[i] = [np.log(1 + value * 10_000 / cell.sum()) for value in cell]
    return out


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_counts_become_log_expression(kind: object, dtype: type) -> None:
    adata = counts()
    x = adata.X.copy()
    adata.X = kind(x.astype(dtype))
    assert normalize_counts(adata)
    np.testing.assert_allclose(dense(adata.X), by_hand(x), rtol=1e-5)
    assert sparse.issparse(adata.X) == (kind is not np.asarray)


def test_counts_are_kept() -> None:
    adata = counts()
    x = adata.X.copy()
    normalize_counts(adata)
    np.testing.assert_array_equal(adata.layers["counts"], x)


def test_log_expression_is_left_alone() -> None:
    adata = counts()
    adata.X = by_hand(adata.X)
    x = adata.X.copy()
    assert not normalize_counts(adata)
    np.testing.assert_array_equal(adata.X, x)
    assert not adata.layers


def test_a_second_time_nothing_happens() -> None:
    adata = counts()
    normalize_counts(adata)
    x = adata.X.copy()
    assert not normalize_counts(adata)
    np.testing.assert_array_equal(adata.X, x)


def test_cells_without_counts_are_refused() -> None:
    adata = counts()
    adata.X[[3, 7]] = 0
    x = adata.X.copy()
    with pytest.raises(ValueError, match=r"2 of 90 cells have no counts.*filter_cells"):
        normalize_counts(adata)
    np.testing.assert_array_equal(adata.X, x)
    assert not adata.layers


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_a_layer_that_holds_the_same_counts_already_is_no_obstacle(kind: object) -> None:
    adata = counts()
    x = adata.X.copy()
    adata.layers["counts"] = kind(x.astype(int))
    assert normalize_counts(adata)
    np.testing.assert_array_equal(dense(adata.layers["counts"]), x)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_a_layer_that_holds_other_counts_is_not_overwritten(kind: object) -> None:
    adata = counts()
    other = adata.X + 1
    adata.layers["counts"] = kind(other)
    with pytest.raises(ValueError, match="holds other values"):
        normalize_counts(adata)
    np.testing.assert_array_equal(dense(adata.layers["counts"]), other)


def scanpys_choice(adata: AnnData, n_genes: int, batch_key: str | None) -> np.ndarray:
    copy = adata.copy()
    copy.obs["sample"] = copy.obs["sample"].astype("category")
    sc.pp.highly_variable_genes(copy, n_top_genes=n_genes, batch_key=batch_key)
    return copy.var["highly_variable"].to_numpy()


def test_variable_genes_are_those_of_scanpy_by_batch() -> None:
    adata = counts()
    normalize_counts(adata)
    expected = scanpys_choice(adata, 20, "sample")
    assert mark_variable_genes(adata, "sample", 20)
    np.testing.assert_array_equal(adata.var["highly_variable"], expected)
    assert expected.sum() == 20


def test_tiny_samples_have_no_say() -> None:
    adata = counts(cells=(50, 40, MIN_CELLS - 1))
    # In the tiny sample, genes vary that vary nowhere else.
    adata.X[90:, 40:] = np.random.default_rng(2).choice([0, 500], size=(MIN_CELLS - 1, 20))
    normalize_counts(adata)
    expected = scanpys_choice(adata[:90], 20, "sample")
    mark_variable_genes(adata, "sample", 20)
    np.testing.assert_array_equal(adata.var["highly_variable"], expected)


def test_where_all_samples_are_tiny_they_choose_together() -> None:
    adata = counts(cells=(15, 12, 10))
    normalize_counts(adata)
    adata.obs["all"] = "one"  # by batch, scanpy leaves out genes that are absent
    expected = scanpys_choice(adata, 20, "all")
    assert mark_variable_genes(adata, "sample", 20)
    np.testing.assert_array_equal(adata.var["highly_variable"], expected)


def test_layer() -> None:
    adata = counts()
    adata.layers["log"] = sparse.csr_matrix(by_hand(adata.X).astype(np.float32))
    normalized = adata.copy()
    normalized.X = normalized.layers["log"]
    adata.X[:] = 1
    assert mark_variable_genes(adata, "sample", 20, layer="log")
    expected = scanpys_choice(normalized, 20, "sample")
    np.testing.assert_array_equal(adata.var["highly_variable"], expected)


@pytest.mark.parametrize("kind", ["string", "category", "integer", "boolean"])
def test_any_kind_of_labels_and_nothing_else_is_written(kind: str) -> None:
    adata = counts()
    labels = adata.obs["sample"] == "s1"
    adata.obs["sample"] = {
        "string": adata.obs["sample"].to_numpy(dtype=object),
        # An unused category and one of a single cell's kind do not disturb.
        "category": pd.Categorical(adata.obs["sample"], categories=["s1", "unused", "s0"]),
        "integer": labels.to_numpy(dtype=int),
        "boolean": labels.to_numpy(dtype=bool),
    }[kind]
    adata.obs["note"] = [f"cell {i % 7}" for i in range(adata.n_obs)]
    normalize_counts(adata)
    before = adata.copy()
    assert mark_variable_genes(adata, "sample", 20)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert list(adata.var) == ["highly_variable"]
    assert set(adata.uns) == set(before.uns)
    assert adata.var["highly_variable"].dtype == bool


def test_marks_that_exist_are_respected() -> None:
    adata = counts()
    normalize_counts(adata)
    marks = np.arange(adata.n_vars) % 3 == 0
    adata.var["highly_variable"] = marks
    assert not mark_variable_genes(adata, "sample", 20)
    np.testing.assert_array_equal(adata.var["highly_variable"], marks)


@pytest.mark.parametrize("n_genes", [60, 2000])
def test_few_genes_are_all_used(n_genes: int) -> None:
    adata = counts()
    normalize_counts(adata)
    assert not mark_variable_genes(adata, "sample", n_genes)
    assert "highly_variable" not in adata.var


def test_where_values_are_negative_the_variance_within_samples_decides() -> None:
    """Residuals and log-ratios have no dispersion, as that divides by the mean."""
    rng = np.random.default_rng(4)
    adata = counts(cells=(50, 40, 5))
    sd = rng.permutation(np.linspace(0.5, 3, adata.n_vars))
    x = rng.normal(size=adata.shape) * sd
    x[50:, :10] += 100  # differs between samples, not within
    x[90:, 10:20] *= 100  # varies in the tiny sample
    adata.X = x
    within = np.mean([x[:50].var(axis=0), x[50:90].var(axis=0)], axis=0)
    assert mark_variable_genes(adata, "sample", 20)
    marked = np.flatnonzero(adata.var["highly_variable"])
    np.testing.assert_array_equal(marked, np.sort(np.argsort(within)[-20:]))


def test_repeated_names() -> None:
    adata = counts()
    normalize_counts(adata)
    expected = scanpys_choice(adata, 20, "sample")
    adata.var_names = [f"g{i % 50}" for i in range(adata.n_vars)]
    mark_variable_genes(adata, "sample", 20)
    np.testing.assert_array_equal(adata.var["highly_variable"], expected)
