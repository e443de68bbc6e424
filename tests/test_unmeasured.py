"""Genes that a sample never measured, though its values say 0."""

import anndata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from simulation import simulate, sparse_like

import bioren
from bioren import Moments
from bioren.effects.unmeasured import expected_there, find_unmeasured

LACKING = [3, 7, 11]


def by_state(x, codes, kind):
    return Moments.by_group(x, codes, codes.max() + 1, np.eye(kind.max() + 1)[kind])


def counts(rate, cells=400, seed=0):
    """Zeros and positive values in two samples of two types, by the rate of each type and gene."""
    rng = np.random.default_rng(seed)
    codes, kind = np.arange(cells) % 2, np.arange(cells) // 2 % 2
    x = rng.random((cells, np.shape(rate)[1])) < np.array(rate)[kind]
    return x * rng.uniform(0.5, 2, x.shape), codes, kind


def test_zeros_count_where_they_are_improbable():
    x, codes, kind = counts([[0.9, 0.5, 0.02, 0.5], [0.9, 0.5, 0.02, 0.5]])
    x[codes == 1, :3] = 0
    found = find_unmeasured(by_state(x, codes, kind))
    assert_array_equal(found, [[False] * 4, [True, True, False, False]])


def test_a_marker_of_a_type_that_a_sample_lacks_is_none():
    x, codes, kind = counts([[0.9, 0.0, 0.5], [0.9, 0.9, 0.5]])
    keep = (codes == 0) | (kind == 0)
    x, codes, kind = x[keep], codes[keep], kind[keep]
    assert not x[codes == 1, 1].any()
    assert not find_unmeasured(by_state(x, codes, kind)).any()


def test_a_sample_that_sees_less_of_all_is_expected_to_see_less_of_each():
    """A gene that half of the cells show is silent in cells that show a fiftieth of all genes."""
    rng = np.random.default_rng(0)
    rate = np.full((2, 500), 0.5)
    x, codes, kind = counts(rate)
    x[codes == 1] *= rng.random((200, 500)) < 0.02
    x[codes == 1, 0] = 0
    assert not find_unmeasured(by_state(x, codes, kind)).any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rate=st.floats(0, 1), cells=st.integers(4, 300))
def test_nothing_is_found_where_all_measure_alike(seed, rate, cells):
    x, codes, kind = counts(np.full((2, 60), rate), cells, seed)
    assert not find_unmeasured(by_state(x, codes, kind)).any()


def test_rare_genes_in_many_states_are_none():
    rng = np.random.default_rng(0)
    codes, kind = np.arange(2000) % 2, rng.integers(60, size=2000)
    x = 1.0 * (rng.random((2000, 200)) < 0.003)
    assert (~x[codes == 1].any(axis=0)).sum() > 1
    assert not find_unmeasured(by_state(x, codes, kind)).any()


def test_what_is_expected_is_what_the_others_have_in_the_same_states():
    x, codes, kind = counts([[0.9, 0.5], [0.3, 0.5]])
    x[codes == 1, 0] = 0
    moments = by_state(x, codes, kind)
    expected = expected_there(moments, np.array([[False, False], [True, False]]))
    assert_allclose(expected.mean[1, :, 0], moments.mean[0, :, 0])
    assert_allclose(expected.var()[1, :, 0], moments.var()[0, :, 0])
    assert_array_equal(expected.mean[..., 1], moments.mean[..., 1])
    assert_array_equal(moments.mean[1, :, 0], 0)  # not changed


def outer_join():
    """Three samples, of which the last lacks three genes, as an outer join leaves them."""
    whole = sparse_like(simulate((150, 150, 150), n_genes=60))
    adata = whole.copy()
    last = (adata.obs["sample"] == "c").to_numpy()
    adata.X[np.ix_(last, LACKING)] = 0
    return whole, adata, last


def test_they_are_left_alone_marked_and_warned_of(correct):
    whole, adata, last = outer_join()
    with pytest.warns(UserWarning, match=r"3 of 60 genes .* 3 in c \(gene3, gene7, gene11\)"):
        correct(adata, "sample")
    assert not adata.layers["bioren"][np.ix_(last, LACKING)].any()
    table = bioren.tl.batch_effects(adata).set_index(["sample", "gene"]).unstack("gene")
    names = [f"gene{g}" for g in LACKING]
    there = table.loc["c"].unstack(0).loc[names]
    assert (there["n_measured"] == 0).all()
    assert (there["r"] == 1).all()
    assert (there["d"] == 0).all()
    assert np.isinf(there[["standard_error_d", "standard_error_r"]].astype(float)).all(axis=None)
    assert (there["removed"] == 0).all()
    assert (table["n_measured"].drop(columns=names) == 150).all(axis=None)
    # The others' effects on these genes are those between the others.
    two = whole[~last].copy()
    correct(two, "sample")
    alone = bioren.tl.batch_effects(two).set_index(["sample", "gene"])["d"].unstack("gene")
    assert_allclose(table["d"].loc[["a", "b"], names], alone[names], atol=0.1)


def test_what_else_there_is_does_not_change_much(correct):
    whole, adata, last = outer_join()
    correct(whole, "sample")
    with pytest.warns(UserWarning, match="had not been measured"):
        correct(adata, "sample")
    others = np.setdiff1d(np.arange(60), LACKING)
    difference = adata.layers["bioren"][:, others] - whole.layers["bioren"][:, others]
    assert np.abs(difference).mean() < 0.03
    if "X_bioren" in adata.obsm:
        z, kind = adata.obsm["X_bioren"], adata.obs["type"].to_numpy()
        gap = np.linalg.norm(
            [
                z[last & (kind == k)].mean(axis=0) - z[~last & (kind == k)].mean(axis=0)
                for k in set(kind)
            ]
        )
        assert gap < 0.1 * np.linalg.norm(z.std(axis=0))


@pytest.mark.filterwarnings("ignore:.*fit the reference badly")  # two samples are few
def test_a_model_keeps_them_and_maps_them(tmp_path):
    whole, adata, last = outer_join()
    model = bioren.RenormAutoencoder(5)
    with pytest.warns(UserWarning, match="had not been measured"):
        model.fit(adata, "sample")
    model.save(tmp_path / "model")
    again = bioren.load(tmp_path / "model")
    assert_array_equal(again.alignment_.unmeasured, model.alignment_.unmeasured)
    assert model.alignment_.unmeasured.sum() == 3
    assert_array_equal(again.correct(adata), model.correct(adata))
    level = model.population_.profile.whole().mean
    assert_allclose(level[LACKING], whole.X[~last][:, LACKING].mean(axis=0), rtol=0.1)
    reference = bioren.RenormAutoencoder(5).fit(whole[~last].copy(), "sample")
    with pytest.warns(UserWarning, match="3 in c"):
        mapped = reference.map(adata[last].copy(), batch_key="sample")
    assert_array_equal(np.flatnonzero(mapped.alignment.unmeasured[0]), LACKING)
    assert not mapped.corrected[:, LACKING].any()
    before = reference.population_.profile.whole().mean[LACKING]
    grown = reference.add(mapped).population_.profile.whole().mean[LACKING]
    assert_allclose(grown, before, rtol=0.1)


def test_a_few_genes_are_left_alone_without_a_word():
    adata = simulate((150, 150, 150), n_genes=200)
    adata.X[(adata.obs["sample"] == "c").to_numpy(), 5] = 0
    bioren.pp.bridge(adata, "sample")  # warnings are errors
    measured = bioren.tl.batch_effects(adata).set_index(["sample", "gene"])["n_measured"]
    assert measured["c"]["gene5"] == 0
    assert (measured == 0).sum() == 1


def test_ordinary_data_have_hardly_any(real_data):
    """Genes of another name in one study (C10orf10 is DEPP1) are found, and few others."""
    import scanpy as sc

    found = {}
    for name in ("pancreas_5tech_panc8", "cellbench_5batch", "kang_pbmc_ctrl_8donors"):
        adata = anndata.read_h5ad(real_data / f"{name}.h5ad")
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        kind = adata.obs["cell_type"].cat.codes.to_numpy().astype(int)
        codes = adata.obs["batch"].cat.codes.to_numpy().astype(int)
        unmeasured = find_unmeasured(by_state(adata.X, codes, kind))
        found[name] = unmeasured.sum()
        if name.startswith("pancreas"):
            where = dict(zip(adata.obs["batch"].cat.categories, unmeasured, strict=True))
            old, new = (adata.var_names.get_loc(gene) for gene in ("C10orf10", "DEPP1"))
            assert where["fluidigmc1"][old]
            assert where["celseq"][new]
    assert found["cellbench_5batch"] == found["kang_pbmc_ctrl_8donors"] == 0
