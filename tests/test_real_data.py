"""The main job on public data sets, from the raw file; they lie in the folder BIOREN_DATA."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import read_h5ad
from simulation import mixing, neighbors, purity

import bioren
from bioren.network.training import TrainingOptions

FEW_EPOCHS = TrainingOptions(max_epochs=2, progress=False)


def integrate(adata, batch_key="batch", **options):
    options = {"training": FEW_EPOCHS, "progress": False, "copy": True} | options
    return bioren.tl.integrate(adata, batch_key, **options)


@pytest.fixture(scope="module")
def prepared(real_data):
    """Return a function that reads counts and makes log-expression of variable genes."""

    def prepared(name, n_genes=400):
        adata = read_h5ad(real_data / f"{name}.h5ad")
        sc.pp.filter_genes(adata, min_cells=3)
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        sc.pp.highly_variable_genes(adata, n_top_genes=n_genes, batch_key="batch")
        return adata[:, adata.var["highly_variable"]].copy()

    return prepared


@pytest.mark.parametrize(
    ("name", "mixed", "pure"),
    [("pancreas_5tech_panc8", 0.25, 0.9), ("cellbench_5batch", 0.25, 0.95)],
)
def test_batches_mix_and_types_stay_apart(prepared, name, mixed, pure):
    adata = prepared(name)
    batch, kind = adata.obs["batch"], adata.obs["cell_type"]
    before = sc.pp.pca(adata.X, n_comps=30)
    result = integrate(adata)
    after = result.obsm["X_bioren"]
    assert mixing(after, batch) > mixing(before, batch) + mixed
    assert purity(after, kind) > max(pure, purity(before, kind) - 0.01)
    assert mixing(sc.pp.pca(result.layers["bioren"], n_comps=30), batch) > mixing(before, batch)


@pytest.mark.parametrize("name", ["pancreas_5tech_panc8", "cellbench_5batch"])
def test_raw_files_are_refused_until_normalized(real_data, name):
    adata = read_h5ad(real_data / f"{name}.h5ad")
    for function in (bioren.pp.bridge, bioren.tl.integrate):
        with pytest.raises(ValueError, match="look like counts"):
            function(adata, "batch")


def test_a_condition_as_batch_keeps_the_types(prepared):
    adata = prepared("kang_pbmc_ctrl_stim", 200)
    before = purity(sc.pp.pca(adata.X, n_comps=30), adata.obs["cell_type"])
    with pytest.warns(UserWarning, match="interferon-stimulated genes"):
        result = integrate(adata)
    assert purity(result.obsm["X_bioren"], adata.obs["cell_type"]) > before - 0.01
    effects = bioren.tl.batch_effects(result)
    stimulated = effects[effects["sample"] == "stim"].set_index("gene")["d"]
    assert {"RSAD2", "CXCL10", "IFI44L"} <= set(stimulated.nlargest(10).index)


def test_bulk_expression_through_the_bridge(real_data):
    adata = read_h5ad(real_data / "bulk_bladderbatch.h5ad")
    bioren.pp.bridge(adata, "batch")
    result = adata.layers["bioren"]

    def between(x):  # variance of the batches' means, in shares of the total
        batches = adata.obs.groupby("batch", observed=True).indices.values()
        means = [x[cells].mean(axis=0) for cells in batches]
        return np.var(means, axis=0).sum() / x.var(axis=0).sum()

    assert np.isfinite(result).all()
    assert between(result) < 0.7 * between(adata.X)


def test_an_embedding_without_genes(real_data):
    adata = read_h5ad(real_data / "jurkat_293t_pcs.h5ad")
    adata = adata[np.random.default_rng(0).permutation(adata.n_obs)[:1500]].copy()
    batch, kind = adata.obs["batch"], adata.obs["cell_type"]
    bioren.tl.integrate(adata, "batch", use_rep="X_pca")
    after, before = adata.obsm["X_bioren"], adata.obsm["X_pca"]
    assert mixing(after, batch) > mixing(before, batch) + 0.1
    assert purity(after, kind) > 0.99


@pytest.fixture(scope="module")
def donor(real_data):
    """One donor's two largest cell types: no batch effect at all."""
    adata = read_h5ad(real_data / "kang_pbmc_ctrl_8donors.h5ad")
    adata = adata[adata.obs["batch"] == "1015"].copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=150)
    kinds = adata.obs["cell_type"].value_counts().index[:2]
    cells = adata.obs["cell_type"].isin(kinds)
    adata = adata[cells, adata.var["highly_variable"]].copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    return adata


def test_composition_alone_is_no_batch_effect(donor):
    rng = np.random.default_rng(0)
    share = np.where(donor.obs["cell_type"] == donor.obs["cell_type"].iloc[0], 0.9, 0.1)
    donor.obs["part"] = np.where(rng.random(donor.n_obs) < share, "A", "B")
    x = donor.X.toarray()

    def moves(**options):
        result = bioren.pp.bridge(donor, "part", copy=True, **options).layers["bioren"]
        moved = (result - x) / x.std(axis=0)
        groups = donor.obs.groupby(["part", "cell_type"]).indices.values()
        return np.array([np.abs(moved[cells].mean(axis=0)) for cells in groups])

    assert np.quantile(moves(), 0.95) < 0.1
    assert moves(standardize=False).max() > 0.5


def test_random_halves_stay_as_they_are(donor):
    donor.obs["half"] = np.random.default_rng(1).choice(["A", "B"], donor.n_obs)
    result = integrate(donor, "half")
    x = donor.X.toarray()
    assert np.abs(result.layers["bioren"] - x).mean() < 0.02 * x.std()
    untouched = integrate(donor, "half", strength=0)
    pairs = zip(
        neighbors(result.obsm["X_bioren"]), neighbors(untouched.obsm["X_bioren"]), strict=True
    )
    assert np.mean([len(set(a) & set(b)) / 15 for a, b in pairs]) > 0.9


def by_pairs(x, mouse, strain, *, batch):
    """Return mean correlations of one mouse's runs in two batches, of other strains in one."""
    z = pd.DataFrame((x - np.nanmean(x, axis=0)).T).corr().to_numpy()  # of what both have
    apart = batch[:, None] != batch
    same, other = apart & (mouse[:, None] == mouse), ~apart & (strain[:, None] != strain)
    return z[same].mean(), z[other].mean()


@pytest.mark.filterwarnings("ignore:17,485 values .20.5%. are missing .NaN., of 254 of 366 genes")
@pytest.mark.parametrize("standardize", [True, False])
def test_mice_measured_twice_agree_and_strains_stay_apart(real_data, standardize):
    adata = read_h5ad(real_data / "proteome_mice.h5ad")
    level = np.nanmedian(adata.X - np.nanmedian(adata.X, axis=0), axis=1, keepdims=True)
    adata.X -= level  # of each run
    bioren.pp.bridge(adata, "batch", standardize=standardize)
    result = adata.layers["bioren"]
    np.testing.assert_array_equal(np.isnan(result), np.isnan(adata.X))
    obs = [adata.obs[key].astype(str).to_numpy() for key in ("mouse", "strain", "batch")]
    before, after = (by_pairs(x, *obs[:2], batch=obs[2]) for x in (adata.X, result))
    assert before[1] > 0.3  # runs of one batch are alike, whatever was measured
    assert after[1] < 0.1
    assert after[0] > 0.7
    effects = bioren.tl.batch_effects(adata)
    assert effects["n_measured"].sum() == (~np.isnan(adata.X)).sum()
    assert np.isinf(effects["standard_error_d"]).sum() == (effects["n_measured"] == 0).sum() == 1


@pytest.mark.filterwarnings("ignore:.*values .* are missing .NaN., of")
def test_controls_of_a_metabolome_agree_and_more_missing_values_change_little(real_data):
    adata = read_h5ad(real_data / "metabolome_mtbls79.h5ad")
    some = adata.copy()
    some.X[np.random.default_rng(0).random(adata.shape) < 0.2] = np.nan
    for of in (adata, some):
        bioren.pp.bridge(of, "batch", controls_key="is_qc", standardize=False)
    control = adata.obs["is_qc"].to_numpy()

    def between(x):  # median over features of the spread of the batches' means of the controls
        parts = adata[control].obs.groupby("batch", observed=True).indices.values()
        return np.nanmedian(np.std([np.nanmean(x[control][p], axis=0) for p in parts], axis=0))

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # features that no control of a batch has
        assert between(adata.layers["bioren"]) < 0.3 * between(adata.X)
    there = ~np.isnan(some.X)
    moved, change = (
        np.abs(a[there] - b[there]).mean()
        for a, b in (
            (adata.layers["bioren"], adata.X),
            (adata.layers["bioren"], some.layers["bioren"]),
        )
    )
    assert change < 0.5 * moved
