import numpy as np
import pytest
import slow_missing
from anndata import read_h5ad, read_zarr
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.stats import spearmanr
from simulation import simulate, sparse_like
from slots import fingerprint, furnished

import bioren


def bridged(adata, **options):
    return bioren.pp.bridge(adata, "sample", copy=True, **options).layers["bioren"]


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("center", [True, False])
def test_nothing_else_changes(form, center):
    adata = furnished(form)
    before = fingerprint(adata)
    assert bioren.pp.bridge(adata, "sample", center=center) is None
    after = fingerprint(adata)
    assert set(after) - set(before) == {("layers", "bioren"), ("uns", "bioren")}
    assert {slot: after[slot] for slot in before} == before


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_the_result_shares_no_memory_with_the_input(form):
    adata = furnished(form)
    before = fingerprint(adata)["X"]
    bioren.pp.bridge(adata, "sample", center=False, strength=0)
    layer = adata.layers["bioren"]
    for values in (layer.data, layer.indices, layer.indptr) if sparse.issparse(layer) else (layer,):
        values[:] = 0
    assert fingerprint(adata)["X"] == before


def test_copy_leaves_the_input_alone(adata):
    before = fingerprint(adata)
    result = bioren.pp.bridge(adata, "sample", copy=True)
    assert fingerprint(adata) == before
    assert "bioren" in result.layers


def test_names_of_what_is_read_and_written(adata):
    adata.layers["log"] = adata.X.copy()
    expected = bridged(adata)
    adata.X = np.zeros_like(adata.X)
    bioren.pp.bridge(adata, "sample", layer="log", key_added="even")
    assert_array_equal(adata.layers["even"], expected)
    assert "bioren" not in adata.layers
    assert len(bioren.tl.batch_effects(adata, key="even")) == 3 * 20


# Zeros


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_without_centering_zeros_stay_zero_and_sparse_stays_csr(form):
    adata = sparse_like(simulate(log_scale=0.3))
    dense = adata.X.copy()
    adata.X = form(dense)
    result = bridged(adata, center=False)
    assert isinstance(result, sparse.csr_matrix)
    expected = sparse.csr_matrix(dense)
    assert_array_equal(result.indptr, expected.indptr)
    assert_array_equal(result.indices, expected.indices)
    assert (result.data > 0).all()
    assert not np.allclose(result.data, expected.data)
    assert result.dtype == np.float32


def test_stored_zeros_stay_stored():
    adata = sparse_like(simulate())
    x = sparse.csr_matrix(adata.X)
    x.data[:5] = 0
    adata.X = x
    assert bridged(adata, center=False).nnz == x.nnz


def test_without_centering_each_value_is_scaled_by_its_sample(adata):
    result = bridged(adata, center=False)
    ratio = result / adata.X
    for sample in "abc":
        cells = (adata.obs["sample"] == sample).to_numpy()
        assert_allclose(ratio[cells], np.broadcast_to(ratio[cells][:1], ratio[cells].shape), 1e-4)


# Order


def test_permuting_cells_and_genes_permutes_the_plain_result(adata):
    rng = np.random.default_rng(0)
    cells, genes = rng.permutation(adata.n_obs), rng.permutation(adata.n_vars)
    expected = bridged(adata, standardize=False)[cells][:, genes]
    result = bridged(adata[cells, genes].copy(), standardize=False)
    assert_allclose(result, expected, atol=1e-5)


def test_permuting_cells_changes_the_standardized_result_little():
    adata = simulate((150, 150))
    cells = np.random.default_rng(0).permutation(adata.n_obs)
    moved = bridged(adata[cells].copy()) - bridged(adata)[cells]
    assert np.abs(moved).mean() < 0.05 * adata.X.std()  # other random states


def test_order_of_cells_and_genes_stays(adata):
    cells, genes = adata.obs_names.copy(), adata.var_names.copy()
    bioren.pp.bridge(adata, "sample")
    assert_array_equal(adata.obs_names, cells)
    assert_array_equal(adata.var_names, genes)


def test_same_seed_same_result(adata):
    assert_array_equal(bridged(adata, rng=3), bridged(adata, rng=3))
    assert_array_equal(bridged(adata, rng=3), bridged(adata, rng=np.random.default_rng(3)))


# What is removed


def test_planted_effects_are_recovered_although_compositions_differ():
    composition = [[0.6, 0.3, 0.1], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]]
    adata = simulate((200, 200, 200), n_genes=60, composition=composition)
    bioren.pp.bridge(adata, "sample")
    effects = bioren.tl.batch_effects(adata)
    planted = adata.uns["planted_shift"]
    assert spearmanr(effects["d"], planted.ravel()).statistic > 0.95
    error = effects["d"].to_numpy().reshape(3, 60) * adata.X.std(axis=0) - planted
    assert np.abs(error).mean() < 0.1  # planted: normal with standard deviation 0.5


def test_samples_agree_within_types_afterwards():
    adata = simulate((200, 200), composition=[[0.8, 0.1, 0.1], [0.2, 0.4, 0.4]])
    result = bridged(adata)

    def difference(x):
        means = [
            x[((adata.obs["sample"] == s) & (adata.obs["type"] == "type0")).to_numpy()].mean(axis=0)
            for s in "ab"
        ]
        return np.abs(means[0] - means[1]).mean()

    assert difference(result) < 0.25 * difference(adata.X)


def test_composition_alone_is_no_batch_effect():
    adata = simulate((200, 200), composition=[[0.9, 0.1], [0.1, 0.9]], shift=0, log_scale=0)
    spread = adata.X.std(axis=0)

    def moved(result):
        groups = adata.obs.groupby(["sample", "type"], observed=True).indices.values()
        return np.array(
            [np.abs((result - adata.X)[cells].mean(axis=0)) / spread for cells in groups]
        )

    assert np.quantile(moved(bridged(adata)), 0.95) < 0.1
    assert moved(bridged(adata, standardize=False)).max() > 0.5


def test_random_halves_stay_as_they_are():
    adata = simulate((200, 200), shift=0, log_scale=0)
    assert np.abs(bridged(adata) - adata.X).mean() < 0.02 * adata.X.std()


def test_a_type_in_one_sample_alone_survives():
    composition = [[0.5, 0.5, 0], [0.5, 0.2, 0.3]]
    adata = simulate((200, 200), composition=composition, shift=0.3)
    result = bridged(adata)
    kinds = adata.obs["type"].to_numpy()

    def gap(x):  # between the lone type and the others
        return x[kinds == "type2"].mean(axis=0) - x[kinds == "type0"].mean(axis=0)

    assert np.corrcoef(gap(result), gap(adata.X))[0, 1] > 0.95
    assert np.linalg.norm(gap(result)) > 0.8 * np.linalg.norm(gap(adata.X))


@pytest.mark.parametrize("reference", ["a", "c"])
def test_a_reference_sample_keeps_its_expression(adata, reference):
    result = bridged(adata, reference=reference)
    there = (adata.obs["sample"] == reference).to_numpy()
    assert_allclose(result[there], adata.X[there], atol=1e-4)
    assert np.abs(result[~there] - adata.X[~there]).mean() > 0.1


@pytest.mark.parametrize("center", [True, False])
def test_strength_zero_changes_nothing(adata, center):
    assert_allclose(bridged(adata, strength=0, center=center), adata.X, atol=1e-5)


def test_more_strength_removes_more(adata):
    moved = [np.abs(bridged(adata, strength=s) - adata.X).mean() for s in (0, 0.3, 0.6, 1)]
    assert moved == sorted(moved)
    assert moved[-1] > 2 * moved[1] > 0


def test_everything_kept_changes_nothing(adata):
    assert_allclose(bridged(adata, max_kept=(np.inf, np.inf)), adata.X, atol=1e-5)


def test_no_more_than_the_limit_is_removed(adata):
    result = bioren.pp.bridge(adata, "sample", max_removed=(1, 0.2), copy=True)
    effects = bioren.tl.batch_effects(result)
    assert (effects["d"] * effects["removed"]).abs().max() < 0.2 + 1e-5


def test_labels_are_refused_where_no_states_are_compared(adata):
    with pytest.raises(ValueError, match="standardize=True"):
        bridged(adata, labels_key="type", standardize=False)


# Files


@pytest.mark.parametrize(
    ("write", "read"),
    [("write_h5ad", read_h5ad), ("write_zarr", read_zarr)],
    ids=["h5ad", "zarr"],
)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")  # anndata announces its next default
def test_results_survive_a_file(tmp_path, write, read, center):
    pytest.importorskip("zarr")
    adata = sparse_like(simulate())
    adata.X = sparse.csr_matrix(adata.X)
    bioren.pp.bridge(adata, "sample", center=center)
    getattr(adata, write)(tmp_path / "cells")
    again = read(tmp_path / "cells")
    layers = [a.layers["bioren"] for a in (adata, again)]
    if not center:
        layers = [layer.toarray() for layer in layers]
    assert_array_equal(*layers)
    table, expected = bioren.tl.batch_effects(again), bioren.tl.batch_effects(adata)
    assert table.equals(expected)
    assert again.uns["bioren"]["settings"]["center"] == center


def test_bulk_matrices_of_few_replicates():
    adata = simulate((3, 3, 3), n_genes=400)
    result = bridged(adata)

    def between(x):
        means = [x[(adata.obs["sample"] == s).to_numpy()].mean(axis=0) for s in "abc"]
        return np.var(means, axis=0).mean()

    assert np.isfinite(result).all()
    assert between(result) < between(adata.X)


# Missing values


def with_missing(adata, share=0.3, seed=0):
    """Return a copy of which so many values are missing, at random."""
    adata = adata.copy()
    missing = np.random.default_rng(seed).random(adata.shape) < share
    adata.X = np.where(missing, np.nan, adata.X)
    return adata


told = pytest.mark.filterwarnings("ignore:.*values .* are missing")


@told
@pytest.mark.parametrize("reference", [None, "b", ["a", "c"]])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_plain_bridges_of_what_was_measured(reference, form):
    adata = with_missing(simulate((40, 25, 60), shift=1))
    adata.X = adata.X.astype(np.float64)
    adata.X[(adata.obs["sample"] == "b").to_numpy(), 3] = np.nan
    adata.X[(adata.obs["sample"] != "c").to_numpy(), 4] = np.nan
    x, codes = adata.X.copy(), adata.obs["sample"].cat.codes.to_numpy()
    in_reference = np.isin(list("abc"), list("abc") if reference is None else reference)
    expected, *effects_of = slow_missing.plain_bridge(x, codes, in_reference)
    adata.X = form(x)
    bioren.pp.bridge(adata, "sample", standardize=False, reference=reference)
    assert_allclose(adata.layers["bioren"], expected, rtol=1e-10)  # NaN where they were
    effects = bioren.tl.batch_effects(adata)
    names = ("r", "d", "standard_error_r", "standard_error_d")
    for name, wanted in zip(names, effects_of, strict=True):
        assert_allclose(effects[name], wanted.ravel(), rtol=1e-5, atol=1e-6, err_msg=name)
    measured = [(~np.isnan(x[codes == s])).sum(axis=0) for s in range(3)]
    assert_array_equal(effects["n_measured"], np.concatenate(measured))
    assert_array_equal(effects["cells"], np.repeat([40, 25, 60], 20))


@told
@pytest.mark.parametrize("options", [{}, {"labels_key": "type"}, {"standardize": False}])
@pytest.mark.parametrize("share", [0.2, 0.4])
def test_effects_do_not_change_beyond_their_errors_where_values_are_missing(options, share):
    whole = simulate((300, 200, 250), n_genes=60)
    some = with_missing(whole, share)
    tables = []
    for adata in (whole, some):
        bioren.pp.bridge(adata, "sample", **options)
        tables.append(bioren.tl.batch_effects(adata))
    expected, found = tables
    error = found["standard_error_d"]
    assert (error > expected["standard_error_d"]).mean() > 0.95
    away = (found["d"] - expected["d"]) / error
    # Of the values that tell d, a share 1 - share is the same.
    assert np.sqrt(np.mean(away**2)) < 1.3 * np.sqrt(share)
    of_r = np.log(found["r"] / expected["r"]) / (found["standard_error_r"] / found["r"])
    assert np.sqrt(np.mean(of_r**2)) < 1.3 * np.sqrt(share)
    planted = whole.uns["planted_shift"].ravel()
    assert spearmanr(found["d"], planted).statistic > 0.95
    missing = np.isnan(some.X)
    assert_array_equal(np.isnan(some.layers["bioren"]), missing)
    moved = (some.layers["bioren"] - whole.layers["bioren"])[~missing]
    assert np.sqrt(np.mean(moved**2)) < 0.1 * whole.X.std()


@told
def test_composition_is_no_batch_effect_where_values_are_missing():
    adata = simulate((200, 200), composition=[[0.9, 0.1], [0.1, 0.9]], shift=0, log_scale=0)
    adata = with_missing(adata, 0.3)
    moved = np.abs(bridged(adata) - adata.X) / np.nanstd(adata.X, axis=0)
    plain = np.abs(bridged(adata, standardize=False) - adata.X) / np.nanstd(adata.X, axis=0)
    assert np.nanmean(moved) < 0.1 < 0.3 < np.nanmean(plain)


@told
def test_values_that_are_missing_where_types_are_rare_do_not_bend_the_others():
    # In one sample a type lacks half of the genes altogether.
    adata = simulate((250, 250), n_genes=60)
    gone = (adata.obs["sample"] == "a") & (adata.obs["type"] == "type0")
    adata.X[np.ix_(gone.to_numpy(), np.arange(30))] = np.nan
    bioren.pp.bridge(adata, "sample", labels_key="type")
    effects = bioren.tl.batch_effects(adata)
    spread = np.nanstd(adata.X, axis=0)
    error = effects["d"].to_numpy().reshape(2, 60) * spread - adata.uns["planted_shift"]
    assert np.abs(error).mean() < 0.1  # planted: normal with standard deviation 0.5


@told
@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("center", [True, False])
def test_missing_values_of_sparse_matrices(form, center):
    adata = with_missing(sparse_like(simulate()))
    expected = bridged(adata, center=center)
    thin = adata.copy()
    thin.X = form(adata.X)
    result = bridged(thin, center=center)
    result = result.toarray() if sparse.issparse(result) else result
    assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@told
def test_effects_of_controls_where_values_are_missing():
    adata = with_missing(simulate((200, 200)))
    control = np.random.default_rng(0).random(400) < 0.5
    treated = adata.copy()
    treated.obs["control"] = control
    treated.X[~control] += 3
    bioren.pp.bridge(treated, "sample", controls_key="control")
    some = adata[control].copy()
    bioren.pp.bridge(some, "sample")
    assert_allclose(treated.layers["bioren"][control], some.layers["bioren"], rtol=1e-5, atol=1e-5)
    effects = bioren.tl.batch_effects(treated)
    assert effects["n_measured"].sum() == (~np.isnan(treated.X)).sum()


@told
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")  # anndata announces its next default
def test_records_of_missing_values_survive_a_file(tmp_path, adata):
    adata = with_missing(adata)
    adata.X[(adata.obs["sample"] == "b").to_numpy(), 3] = np.nan
    bioren.pp.bridge(adata, "sample")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = bioren.tl.batch_effects(read_h5ad(tmp_path / "cells.h5ad"))
    assert again.equals(bioren.tl.batch_effects(adata))
    lost = again[np.isinf(again["standard_error_d"])]
    assert lost[["sample", "gene", "n_measured", "kept"]].to_numpy().tolist() == [
        ["b", "gene3", 0, 1.0]
    ]


def test_complete_data_have_no_numbers_of_measured_values(adata):
    bioren.pp.bridge(adata, "sample")
    assert "n_measured" not in adata.uns["bioren"]
    effects = bioren.tl.batch_effects(adata)
    assert_array_equal(effects["n_measured"], effects["cells"])


@pytest.mark.parametrize("standardize", [True, False])
def test_samples_and_cells_and_genes_without_any_value(standardize):
    adata = simulate((60, 60, 60))
    in_c = (adata.obs["sample"] == "c").to_numpy()
    adata.X[in_c] = adata.X[:, 7] = adata.X[0] = np.nan
    with pytest.warns(UserWarning) as caught:  # noqa: PT030
        result = bridged(adata, standardize=standardize)
    assert "20 genes have no value at all in sample 'c'" in str(caught[0].message)
    assert "1 of 3 samples have hardly a cell state in common" in str(caught[1].message)
    assert_array_equal(np.isnan(result), np.isnan(adata.X))
