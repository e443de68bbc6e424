"""Whatever comes in: a clear error before any work, or the documented behavior."""

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from simulation import simulate, sparse_like

import bioren


def corrected(correct, adata, key="sample", **options):
    result = correct(adata, key, copy=True, **options)
    assert np.isfinite(result.layers["bioren"]).all()
    return result


@pytest.fixture(scope="module")
def expected(correct):
    return corrected(correct, simulate()).layers["bioren"]


@pytest.fixture(scope="module")
def expected_of_sparse(correct):
    return corrected(correct, sparse_like(simulate())).layers["bioren"]


def with_x(adata, x):
    return AnnData(x, obs=adata.obs, var=adata.var)


# Labels of the samples


@pytest.mark.parametrize(
    "relabel",
    [
        lambda codes: codes,
        lambda codes: pd.array(codes, dtype="Int64"),
        lambda codes: pd.array([f"s{c}" for c in codes], dtype="string"),
        lambda codes: np.array([f"s{c}" for c in codes], dtype=object),
        lambda codes: pd.Categorical(codes),
        lambda codes: pd.Categorical(codes, categories=[0, 1, 2, 99], ordered=True),
    ],
    ids=["int", "Int64", "string", "object", "category", "unused category"],
)
def test_labels_of_any_kind_give_the_same_result(correct, adata, expected, relabel):
    adata.obs["relabeled"] = relabel(adata.obs["sample"].cat.codes.to_numpy())
    result = corrected(correct, adata, "relabeled")
    assert_allclose(result.layers["bioren"], expected, atol=1e-5)
    assert len(result.uns["bioren"]["samples"]) == 3


def test_boolean_labels_are_two_samples(correct, adata):
    adata.obs["first"] = adata.obs["sample"] == "a"
    result = corrected(correct, adata, "first")
    assert list(result.uns["bioren"]["samples"]) == ["False", "True"]


def test_labels_that_read_the_same_are_one_sample(correct, adata):
    adata.obs["mixed"] = pd.Series([1, "1", 2, "2", 3] * 24, index=adata.obs_names, dtype=object)
    result = corrected(correct, adata, "mixed")
    assert list(result.uns["bioren"]["samples"]) == ["1", "2", "3"]
    assert_array_equal(result.uns["bioren"]["cells"], [48, 48, 24])


@pytest.mark.parametrize("nothing", [None, np.nan, pd.NA])
def test_cells_without_label_are_refused(correct, adata, nothing):
    adata.obs["sample"] = adata.obs["sample"].astype(object)
    adata.obs.loc[adata.obs_names[:7], "sample"] = nothing
    with pytest.raises(ValueError, match=r"no label for 7 of 120 cells.*notna"):
        correct(adata, "sample")


def test_missing_column_names_the_choices(correct, adata):
    with pytest.raises(KeyError, match=r"'sampel'; did you mean 'sample'\?.*sample, type"):
        correct(adata, "sampel")


def test_several_columns_are_one_joined_column(correct, adata):
    adata.obs["lab"] = np.arange(adata.n_obs) % 2
    adata.obs["joined"] = [f"{s} + {n}" for s, n in adata.obs[["sample", "lab"]].to_numpy()]
    several, joined = (corrected(correct, adata, key) for key in (["sample", "lab"], "joined"))
    assert_array_equal(several.layers["bioren"], joined.layers["bioren"])
    assert_array_equal(several.uns["bioren"]["samples"], joined.uns["bioren"]["samples"])
    assert list(several.uns["bioren"]["batch_key"]) == ["sample", "lab"]
    for slot in several.obsm:
        assert_array_equal(several.obsm[slot], joined.obsm[slot])


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (7, TypeError, "must name a column"),
        (["sample", None], TypeError, "must name a column"),
        ([], ValueError, "empty list"),
        (["sample", "typ"], KeyError, r"'typ'; did you mean 'type'\?"),
    ],
)
def test_what_names_no_samples_is_refused(correct, adata, key, error, message):
    with pytest.raises(error, match=message):
        correct(adata, key)


def test_labels_and_controls_that_cannot_be_used_are_refused(correct, adata):
    adata.obs["nothing"] = pd.Categorical([None] * adata.n_obs)
    with pytest.raises(ValueError, match="occurs in two samples"):
        correct(adata, "sample", labels_key="sample")
    adata.obs["some"] = adata.obs["sample"] == "a"
    with pytest.raises(KeyError, match=r"'typ'; did you mean 'type'\?"):
        correct(adata, "sample", labels_key="typ")
    with pytest.raises(ValueError, match="no cell has a label"):
        correct(adata, "sample", labels_key="nothing")
    with pytest.raises(ValueError, match="must say True or False"):
        correct(adata, "sample", controls_key="type")
    with pytest.raises(ValueError, match=r"no control in 2 of 3 samples: b, c\."):
        correct(adata, "sample", controls_key="some")


def test_barcodes_are_refused(correct, adata):
    adata.obs["barcode"] = adata.obs_names
    with pytest.raises(ValueError, match=r"120 labels for 120 cells.*look like barcodes"):
        correct(adata, "barcode")


def test_barcodes_that_partly_repeat_are_refused(correct, adata):
    adata.obs["barcode"] = list(adata.obs_names[:90]) + list(adata.obs_names[:30])
    with pytest.raises(ValueError, match="look like barcodes"):
        correct(adata, "barcode")


def test_one_sample_is_refused(correct, adata):
    with pytest.raises(ValueError, match="one sample only, 'a'"):
        correct(adata[adata.obs["sample"] == "a"].copy(), "sample")


def test_unknown_reference_names_the_choices(correct, adata):
    with pytest.raises(ValueError, match=r"reference='x' must name samples.*: a, b, c\."):
        correct(adata, "sample", reference="x")
    with pytest.raises(ValueError, match=r"reference=\[\] must name"):
        correct(adata, "sample", reference=[])


def test_reference_among_integer_labels(correct, adata):
    adata.obs["number"] = adata.obs["sample"].cat.codes.to_numpy()
    expected = corrected(correct, adata, reference="b").layers["bioren"]
    for reference in (1, "1", [1], np.int64(1)):
        result = corrected(correct, adata, "number", reference=reference)
        assert_allclose(result.layers["bioren"], expected, atol=1e-5)


# Few and many cells


def test_samples_of_one_two_and_three_cells(correct):
    adata = simulate((1, 2, 3, 120))
    result = corrected(correct, adata)
    assert_array_equal(result.uns["bioren"]["cells"], [1, 2, 3, 120])


def test_nothing_but_samples_of_one_two_and_three_cells(correct):
    corrected(correct, simulate((1, 2, 3)))


@pytest.mark.filterwarnings("ignore:The correction changed much")  # of samples of two cells
def test_a_thousand_samples(quick):
    adata = simulate((1000, 1000), n_genes=10)
    adata.obs["sample"] = [f"s{i % 1000}" for i in range(2000)]
    bioren.tl.integrate(adata, "sample", training=quick, progress=False)
    assert adata.uns["bioren"]["r"].shape == (1000, 10)
    assert np.isfinite(adata.obsm["X_bioren"]).all()


def test_no_cells(correct, adata):
    with pytest.raises(ValueError, match="no cells"):
        correct(adata[:0].copy(), "sample")


def test_no_genes(correct, adata):
    with pytest.raises(ValueError, match="120 cells x 0 genes"):
        correct(adata[:, :0].copy(), "sample")


def test_too_few_genes_for_an_embedding(correct, adata):
    with pytest.raises(ValueError, match="needs three genes or more, received 2"):
        correct(adata[:, :2].copy(), "sample")
    adata.var["highly_variable"] = adata.var_names == "gene1"
    with pytest.raises(ValueError, match=r"received 1 marked in var\['highly_variable'\], of 20"):
        correct(adata, "sample")
    assert "bioren" in bioren.pp.bridge(adata[:, :1], "sample", standardize=False, copy=True).layers


# Values


def test_constant_genes_keep_their_value(correct, adata):
    adata.X[:, 0], adata.X[:, 1] = 0, 3.25
    result = corrected(correct, adata).layers["bioren"]
    assert_allclose(result[:, 0], 0, atol=1e-6)
    assert_allclose(result[:, 1], 3.25, rtol=1e-6)


def test_a_gene_constant_in_one_sample_stays_finite(correct, adata):
    adata.X[(adata.obs["sample"] == "a").to_numpy(), 0] = 1
    corrected(correct, adata)


@pytest.mark.parametrize("value", [0.0, 1.5])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_a_matrix_of_constants_is_refused(correct, adata, value, form):
    adata.X = form(np.full(adata.shape, value, dtype=np.float32))
    with pytest.raises(ValueError, match="every one is constant"):
        correct(adata, "sample")


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_infinite_values_are_refused(correct, adata, value, form):
    x = adata.X.copy()
    x[3, 4] = x[5, 6] = value
    x[7, 8] = np.nan
    adata.X = form(x)
    with pytest.raises(ValueError, match="2 values are infinite"):
        correct(adata, "sample")


COUNTS = np.random.default_rng(0).poisson(3, (120, 20))


@pytest.mark.parametrize(
    "counts",
    [
        COUNTS,
        COUNTS.astype(np.float32),
        sparse.csc_matrix(COUNTS),
        np.where(COUNTS == 1, 0.5, COUNTS),  # estimated counts are partly fractions
        COUNTS / COUNTS.sum(axis=1, keepdims=True) * 1e4,  # normalized, but not log1p
    ],
    ids=["integer", "float", "sparse", "partly whole", "normalized"],
)
def test_counts_are_refused_and_the_message_says_what_to_call(correct, adata, counts):
    with pytest.raises(ValueError, match=r"look like counts(.|\n)*normalize_total(.|\n)*log1p"):
        correct(with_x(adata, counts), "sample")


@pytest.mark.parametrize(
    "values",
    [
        np.log1p(COUNTS),
        np.log2(COUNTS + 1),
        np.log1p(COUNTS / COUNTS.sum(axis=1, keepdims=True) * 1e4),
        COUNTS > 3,
        COUNTS - 4,
        COUNTS * 100.0 - 1,
    ],
    ids=["log1p", "log2", "CP10k", "boolean", "negative integers", "large with negatives"],
)
def test_whatever_is_not_counts_is_accepted(correct, adata, values):
    corrected(correct, with_x(adata, values))


def test_duplicate_gene_names_are_refused(correct, adata):
    adata.var_names = ["twice", *adata.var_names[1:-1], "twice"]
    with pytest.raises(ValueError, match=r"occur more than once: twice.*var_names_make_unique"):
        correct(adata, "sample")


def test_values_that_are_no_numbers_are_refused(correct, adata):
    with pytest.raises(ValueError, match="type object, expected numbers"):
        correct(with_x(adata, adata.X.astype(object)), "sample")


@pytest.mark.parametrize("strength", [-0.1, 1.1, np.nan])
def test_strength_out_of_range_is_refused(correct, adata, strength):
    with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\]"):
        correct(adata, "sample", strength=strength)


def test_limits_out_of_range_are_refused(correct, adata):
    with pytest.raises(ValueError, match="max_removed must be"):
        correct(adata, "sample", max_removed=(0.5, 1))


# What holds the values


FORMS = {
    "float64": lambda x: x.astype(np.float64),
    "F": np.asfortranarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "dask": lambda x: da.from_array(x, chunks=(50, -1)),
    "dask of csr": lambda x: da.from_array(x, chunks=(50, -1)).map_blocks(sparse.csr_matrix),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_form_gives_the_same_result(correct, adata, expected_of_sparse, form):
    adata = sparse_like(adata)
    result = corrected(correct, with_x(adata, FORMS[form](adata.X))).layers["bioren"]
    assert_allclose(result, expected_of_sparse, atol=2e-4)
    assert result.dtype == (np.float64 if form == "float64" else np.float32)


def test_half_precision_differs_by_its_rounding(correct, adata):
    half = adata.X.astype(np.float16)
    result = corrected(correct, with_x(adata, half)).layers["bioren"]
    exact = corrected(correct, with_x(adata, half.astype(np.float32))).layers["bioren"]
    assert result.dtype == np.float32
    assert_allclose(result, exact, atol=2e-4)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_integers_and_booleans(correct, adata, dtype):
    x = (adata.X > 3).astype(dtype)
    result = corrected(correct, with_x(adata, x)).layers["bioren"]
    exact = corrected(correct, with_x(adata, x.astype(np.float32))).layers["bioren"]
    assert_allclose(result, exact, atol=2e-4)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
class TestBacked:
    @pytest.fixture
    def path(self, form, adata, tmp_path):
        adata = sparse_like(adata)
        adata.X = form(adata.X)
        adata.write_h5ad(tmp_path / "cells.h5ad")
        (tmp_path / "cells.h5ad").chmod(0o444)
        return tmp_path / "cells.h5ad"

    def test_results_are_held_in_memory_and_the_file_stays(self, correct, path, expected_of_sparse):
        before = path.read_bytes()
        backed = read_h5ad(path, backed="r")
        correct(backed, "sample")
        assert backed.isbacked
        assert_allclose(backed.layers["bioren"], expected_of_sparse, atol=2e-4)
        backed.file.close()
        assert path.read_bytes() == before

    def test_copy_is_in_memory(self, correct, path):
        backed = read_h5ad(path, backed="r")
        result = correct(backed, "sample", copy=True)
        assert not result.isbacked
        assert "bioren" in result.layers
        assert "bioren" not in backed.layers
        assert "bioren" not in backed.uns
        backed.file.close()

    def test_view_of_a_file_is_refused_or_copied(self, correct, path):
        backed = read_h5ad(path, backed="r")
        view = backed[::2]
        with pytest.raises(ValueError, match=r"view of a backed file.*to_memory\(\)"):
            correct(view, "sample")
        assert correct(view, "sample", copy=True).n_obs == 60
        backed.file.close()


def test_a_view_becomes_an_anndata_of_its_own(correct, adata):
    before = adata.copy()
    view = adata[::2]
    correct(view, "sample")
    assert not view.is_view
    assert view.layers["bioren"].shape == (60, 20)
    assert list(adata.layers) == list(before.layers)
    assert "bioren" not in adata.uns
    assert_array_equal(adata.X, before.X)


def test_x_may_be_missing_where_a_layer_is_named(correct, adata, expected):
    empty = AnnData(obs=adata.obs, var=adata.var, layers={"log": adata.X})
    with pytest.raises(ValueError, match=r"adata.X is empty \(None\).*log"):
        correct(empty, "sample")
    result = corrected(correct, empty, layer="log")
    assert_allclose(result.layers["bioren"], expected)


def test_missing_layer_names_the_choices(correct, adata):
    adata.layers["logcounts"] = adata.X
    with pytest.raises(KeyError, match=r"'logcount'; did you mean 'logcounts'\?"):
        correct(adata, "sample", layer="logcount")


@pytest.mark.parametrize(
    "marked",
    [[True] * 10 + [np.nan] * 10, pd.array([True] * 10 + [None] * 10, dtype="boolean")],
    ids=["object", "boolean"],
)
def test_a_gene_not_known_to_vary_is_no_variable_gene(correct, adata, marked):
    adata.var["highly_variable"] = [True] * 10 + [False] * 10
    expected = corrected(correct, adata).layers["bioren"]
    adata.var["highly_variable"] = marked
    assert_array_equal(corrected(correct, adata).layers["bioren"], expected)


@pytest.mark.parametrize(
    ("column", "message"),
    [(["x"] * 120, "expected numbers"), ([np.nan] + [1.0] * 119, "missing or infinite in 1 cells")],
)
@pytest.mark.parametrize("use_rep", [None, "X_pca"])
def test_unusable_covariates_are_refused(embedded, quick, column, message, use_rep):
    embedded.obs["bad"] = column
    with pytest.raises(ValueError, match=message):
        bioren.tl.integrate(embedded, "sample", covariates=["bad"], use_rep=use_rep, training=quick)


# An embedding instead of genes


@pytest.fixture
def embedded(adata):
    adata.obsm["X_pca"] = adata.X[:, :6].copy()
    return adata


def test_missing_embedding_names_the_choices(embedded):
    with pytest.raises(KeyError, match=r"'X_pac'; did you mean 'X_pca'\?"):
        bioren.tl.integrate(embedded, "sample", use_rep="X_pac")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda z: z[:, :0], r"shape \(120, 0\)"),
        (lambda z: z[:, :1], r"shape \(120, 1\)"),
        (lambda z: np.where(z > 4, np.nan, z), "NaN or infinite"),
    ],
)
def test_unusable_embedding_is_refused(embedded, bad, message):
    embedded.obsm["X_pca"] = bad(embedded.obsm["X_pca"])
    with pytest.raises(ValueError, match=message):
        bioren.tl.integrate(embedded, "sample", use_rep="X_pca")


@pytest.mark.parametrize("option", [{"layer": "log"}, {"decoded": True}, {"max_removed": (2, 1)}])
def test_options_that_need_genes_are_refused_beside_an_embedding(embedded, option):
    with pytest.raises(ValueError, match="reads no gene"):
        bioren.tl.integrate(embedded, "sample", use_rep="X_pca", **option)


@pytest.mark.parametrize(
    "form",
    [
        sparse.csr_matrix,
        lambda z: z.astype(np.float64),
        lambda z: pd.DataFrame(z, index=[f"cell{i}" for i in range(120)], columns=list("uvwxyz")),
    ],
)
def test_embeddings_of_any_kind(embedded, form):
    bioren.tl.integrate(embedded, "sample", use_rep="X_pca")
    expected = embedded.obsm["X_bioren"]
    embedded.obsm["X_pca"] = form(embedded.obsm["X_pca"])
    bioren.tl.integrate(embedded, "sample", use_rep="X_pca")
    assert_allclose(embedded.obsm["X_bioren"], expected, atol=1e-4)
