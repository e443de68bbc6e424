import copy

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from simulation import simulate, sparse_like

import bioren
from bioren.network.training import TrainingOptions

QUICK = TrainingOptions(max_epochs=2, progress=False)


def fit(adata, batch_key="sample", *, rng=0, **options):
    return bioren.RenormAutoencoder(8, 16, rng=rng, training=QUICK).fit(adata, batch_key, **options)


@pytest.fixture(scope="module")
def cells():
    adata = sparse_like(simulate((60, 60, 60), n_genes=30))
    adata.X = sparse.csr_matrix(adata.X)
    adata.var["highly_variable"] = np.arange(30) % 3 > 0
    return adata


@pytest.fixture(scope="module")
def model(cells):
    return fit(cells)


@pytest.fixture(scope="module", params=["embed", "correct", "decode"])
def apply(request, model):
    """Each function of a fitted model on cells, as an array."""
    return lambda adata, **options: np.asarray(getattr(model, request.param)(adata, **options))


# A cell's result depends on the cell and its sample alone


def test_permuted_cells(cells, apply):
    order = np.random.default_rng(0).permutation(cells.n_obs)
    assert_allclose(apply(cells[order].copy()), apply(cells)[order], atol=1e-5)


def test_subsets_of_cells(cells, apply):
    whole = apply(cells)
    for subset in (slice(0, 50), cells.obs["sample"] == "b", [5, 170, 33]):
        part = cells[subset]
        assert_allclose(apply(part), whole[cells.obs_names.get_indexer(part.obs_names)], atol=1e-5)


def test_single_cells(cells, apply):
    whole = apply(cells)
    for i in range(0, cells.n_obs, 29):
        assert_allclose(apply(cells[[i]]), whole[[i]], atol=1e-5)


def test_cells_twice_and_in_any_form(cells, apply):
    whole = apply(cells)
    twice = AnnData(cells.X.toarray()[[0, 0, 1]], obs=cells.obs.iloc[[2, 0, 1]], var=cells.var[[]])
    twice.obs["sample"] = cells.obs["sample"].iloc[[0, 0, 1]].to_numpy()
    assert_allclose(apply(twice), whole[[0, 0, 1]], atol=1e-5)


def test_another_column_names_the_samples(cells, apply):
    renamed = cells.copy()
    renamed.obs["donor"] = renamed.obs.pop("sample").astype(str)
    assert_array_equal(apply(renamed, batch_key="donor"), apply(cells))


# Genes


def test_genes_shuffled_or_more_than_needed(cells, model):
    genes = np.random.default_rng(0).permutation(cells.n_vars)
    shuffled = cells[:, genes].copy()
    assert_allclose(model.embed(shuffled), model.embed(cells), atol=1e-6)
    assert_allclose(model.correct(shuffled), model.correct(cells)[:, genes], atol=1e-6)
    variable = cells[:, cells.var["highly_variable"]]
    assert_allclose(model.embed(variable), model.embed(cells), atol=1e-6)


def test_missing_and_unknown_genes_are_named(cells, model):
    with pytest.raises(KeyError, match="1 of the model's 20 genes are missing: gene1"):
        model.embed(cells[:, cells.var_names != "gene1"])
    strange = cells.copy()
    strange.var_names = ["strange", *strange.var_names[1:]]  # the network does not see the first
    with pytest.raises(KeyError, match=r"1 of 30 genes were not there.*'strange'"):
        model.correct(strange)


def test_correcting_needs_the_networks_genes_and_no_other(cells, model):
    needed = cells.var["highly_variable"] | (cells.var_names == "gene3")
    part = cells[:, needed].copy()
    assert_allclose(model.correct(part), model.correct(cells)[:, needed], atol=1e-6)
    with pytest.raises(KeyError, match="20 of the model's 20 genes are missing"):
        model.correct(cells[:, ["gene0", "gene3"]])


# Samples


def test_a_sample_that_the_model_does_not_know(cells, apply):
    strange = cells.copy()
    strange.obs["sample"] = strange.obs["sample"].astype(str).replace("b", "x")
    with pytest.raises(ValueError, match=r"not fitted on: x\. It knows a, b, c\."):
        apply(strange)


def test_one_sample_alone_may_be_embedded(cells, apply):
    assert len(apply(cells[cells.obs["sample"] == "c"])) == 60


def test_integer_labels_give_the_same_as_strings(cells, model):
    numbered = cells.copy()
    numbered.obs["number"] = numbered.obs["sample"].cat.codes.astype(int)
    other = fit(numbered, "number")
    assert other.samples_ == ["0", "1", "2"]
    assert_allclose(other.embed(numbered), model.embed(cells), atol=1e-4)
    numbered.obs["number"] = numbered.obs["number"].astype(str)
    assert_array_equal(other.embed(numbered[:40]), other.embed(numbered)[:40])


# State


def everything_in(model):
    parts = {name: value.clone() for name, value in model.network_.state_dict().items()}
    return parts, copy.deepcopy(model.states_), copy.deepcopy(model.alignment_)


def test_applying_changes_nothing_in_the_model(cells, model, apply):
    parts, states, alignment = everything_in(model)
    apply(cells[:7])
    assert not model.network_.training
    for name, value in model.network_.state_dict().items():
        assert torch.equal(value, parts[name])
    for before, after in zip(states.iterations, model.states_.iterations, strict=True):
        for a, b in zip(before, after, strict=True):
            assert_array_equal(a, b)
    assert_array_equal(alignment.bridges.shift, model.alignment_.bridges.shift)


def test_fitting_and_applying_change_nothing_in_the_cells(cells):
    before = cells.copy()
    fitted = fit(cells)
    for apply in (fitted.embed, fitted.correct, fitted.decode):
        apply(cells)
    assert_array_equal(cells.X.toarray(), before.X.toarray())
    assert cells.obs.equals(before.obs)
    assert cells.var.equals(before.var)
    assert list(cells.uns) == list(before.uns)
    assert not [*cells.layers, *cells.obsm]


def test_same_seed_same_model(cells, model):
    assert_array_equal(fit(cells).embed(cells), model.embed(cells))
    assert not np.array_equal(fit(cells, rng=1).embed(cells), model.embed(cells))


def test_fit_again_forgets(cells, model):
    again = fit(simulate(n_genes=12, seed=5))
    again.fit(cells, "sample")
    assert_array_equal(again.embed(cells), model.embed(cells))


def test_a_cell_keeps_its_own_noise_in_corrected_expression(cells, model):
    # Whatever a cell's values, its sample and states alone say how they are moved.
    corrected, bridge = model.correct(cells), model.fitted_.samples().expression
    codes = cells.obs["sample"].cat.codes.to_numpy()
    moved = corrected - bridge.scale[codes] * cells.X.toarray()
    for sample in range(3):
        there = codes == sample
        inside = (bridge.shift[sample].min(axis=0), bridge.shift[sample].max(axis=0))
        assert (moved[there] > inside[0] - 1e-5).all()
        assert (moved[there] < inside[1] + 1e-5).all()


def test_decoded_expression_resembles_the_corrected(cells, model):
    decoded = model.decode(cells)
    assert isinstance(decoded, pd.DataFrame)
    assert list(decoded.columns) == list(cells.var_names[cells.var["highly_variable"]])
    assert list(decoded.index) == list(cells.obs_names)
    corrected = model.correct(cells)[:, cells.var["highly_variable"]]
    assert np.corrcoef(decoded.to_numpy().ravel(), corrected.ravel())[0, 1] > 0.8


# Errors


@pytest.mark.parametrize("name", ["embed", "correct", "decode"])
def test_unfitted(cells, name):
    model = bioren.RenormAutoencoder()
    assert "not fitted" in repr(model)
    with pytest.raises(RuntimeError, match="not fitted yet"):
        getattr(model, name)(cells)


def test_fitted_models_say_so(model):
    assert repr(model).endswith("fitted on 3 samples, 30 genes")


@pytest.mark.parametrize("n_latent", [0, 1, -3])
def test_too_few_dimensions(cells, n_latent):
    with pytest.raises(ValueError, match=f"n_latent must be 2 or more, received {n_latent}"):
        bioren.RenormAutoencoder(n_latent, training=QUICK).fit(cells, "sample")


def test_counts_are_refused_after_fitting_too(cells, apply):
    counts = cells.copy()
    counts.X = (counts.X * 10).floor()
    with pytest.raises(ValueError, match="look like counts"):
        apply(counts)


def test_a_cell_without_negative_values_passes_where_the_others_have_some():
    adata = simulate(n_genes=12)
    adata.X = adata.X * 100 - 50
    adata.X[0] = np.abs(adata.X[0])
    model = fit(adata)
    assert_allclose(model.embed(adata[[0]]), model.embed(adata)[[0]], atol=2e-2)


# How much is removed


@pytest.fixture(scope="module", params=[0, 1])
def shifted(request):
    return simulate((80, 80, 80), n_genes=30, seed=request.param)


@pytest.fixture(scope="module")
def untouched(shifted):
    return bioren.RenormAutoencoder(8, 16, strength=0, training=QUICK).fit(shifted, "sample")


def embedded(adata, **options):
    model = bioren.RenormAutoencoder(8, 16, training=QUICK, **options).fit(adata, "sample")
    return model.embed(adata)


def apart(z, adata):
    """Return the distances between the samples' centers."""
    centers = [z[(adata.obs["sample"] == s).to_numpy()].mean(axis=0) for s in "abc"]
    return np.array([np.linalg.norm(centers[i] - centers[j]) for i, j in ((0, 1), (0, 2), (1, 2))])


def test_strength_zero_leaves_in_the_embedding_what_samples_differ_in(shifted, untouched):
    z = untouched.embed(shifted)
    components = untouched.network_.components.detach().numpy()
    plain = (shifted.X - shifted.X.mean(axis=0)) @ components
    assert_allclose(apart(z, shifted), apart(plain, shifted), rtol=0.1)
    assert np.corrcoef(z.ravel(), plain.ravel())[0, 1] > 0.9
    assert_allclose(untouched.correct(shifted), shifted.X, atol=1e-5)


def test_each_strength_leaves_its_share_in_the_embedding(shifted, untouched):
    before = apart(untouched.embed(shifted), shifted)
    for strength in (0.25, 0.5, 0.75, 1):
        left = apart(embedded(shifted, strength=strength), shifted)
        assert_allclose(left / before, 1 - strength, atol=0.03)


def test_more_strength_leaves_less_though_compositions_differ():
    composition = [[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.2, 0.5]]
    adata = simulate((80, 80, 80), n_genes=30, composition=composition)
    left = [apart(embedded(adata, strength=s), adata) for s in (0, 0.3, 0.6, 1)]
    assert (np.diff(left, axis=0) < 0).all()


@pytest.mark.parametrize("d_max", [0, 0.05, 0.3])
def test_no_gene_of_a_sample_is_moved_by_more_than_the_limit(shifted, untouched, d_max):
    model = bioren.RenormAutoencoder(8, 16, max_removed=(1, d_max), training=QUICK)
    model.fit(shifted, "sample")
    spread = model.alignment_.reference.std()
    moved = np.abs(model.correct(shifted) - shifted.X) / spread
    assert moved.max() == pytest.approx(d_max, abs=1e-5)  # it is reached, too

    # In the embedding, the components cannot rebuild each gene, but all genes taken together.
    components = model.network_.components.detach().numpy()
    assert_array_equal(components, untouched.network_.components.detach().numpy())
    moved = np.linalg.norm(model.embed(shifted) - untouched.embed(shifted), axis=1)
    assert moved.max() <= d_max * np.linalg.norm(spread) + 1e-5
    whole = np.linalg.norm(embedded(shifted) - untouched.embed(shifted), axis=1)
    assert moved.max() < 0.8 * whole.max()


@pytest.mark.parametrize("strength", [0, 0.5, 1])
def test_a_limit_that_is_never_reached_is_none(shifted, strength):
    far, none = (
        embedded(shifted, strength=strength, max_removed=limits) for limits in ((9, 99), None)
    )
    assert_allclose(far, none, atol=1e-4)


# What is known of the cells


@pytest.fixture(scope="module")
def described():
    adata = simulate((80, 80, 80), n_genes=30)
    rng = np.random.default_rng(0)
    adata.obs["depth"] = rng.normal(size=adata.n_obs)
    adata.obs["known"] = adata.obs["type"].where(rng.random(adata.n_obs) < 0.7)
    return adata


def test_cells_with_labels_and_covariates_alone_and_in_company(described):
    model = fit(described, labels_key="known", covariates=["depth"])
    whole = model.embed(described)
    for cells in ([7], [3, 100, 200], described.obs["sample"] == "b"):
        part = described[cells]
        expected = whole[described.obs_names.get_indexer(part.obs_names)]
        assert_allclose(model.embed(part), expected, atol=1e-5)
    assert_allclose(fit(described, labels_key="known", covariates="depth").embed(described), whole)


def test_new_cells_need_covariates_but_no_labels(described):
    model = fit(described, labels_key="known", covariates=["depth"])
    new = described.copy()
    del new.obs["known"]
    without = model.embed(new)
    new.obs["known"] = [None] * 120 + ["never seen"] * 120
    assert_array_equal(model.embed(new), without)
    del new.obs["depth"]
    with pytest.raises(KeyError, match="no column 'depth'"):
        model.embed(new)


def test_labels_order_and_type_do_not_matter(described):
    other = described.copy()
    names = {"type0": "z", "type1": "y", "type2": "x"}
    other.obs["known"] = other.obs["known"].astype(object).map(names, na_action="ignore")
    moved = fit(other, labels_key="known").embed(other)
    expected = fit(described, labels_key="known").embed(described)
    # Other random states, and what is left of the noise.
    assert np.abs(moved - expected).mean() < 0.08 * expected.std()


def test_several_batch_keys_serve_new_cells_too(described):
    adata = described.copy()
    adata.obs["lab"] = np.arange(adata.n_obs) % 2
    adata.obs["joined"] = [f"{s} + {n}" for s, n in adata.obs[["sample", "lab"]].to_numpy()]
    model = fit(adata, ["sample", "lab"])
    assert model.samples_ == [f"{s} + {n}" for s in "abc" for n in (0, 1)]
    whole = model.embed(adata)
    assert_allclose(model.embed(adata[::7]), whole[::7], atol=1e-5)
    assert_array_equal(model.embed(adata, batch_key="joined"), whole)


def test_reliability_is_a_share_of_each_dimension(described):
    model = fit(described)
    assert model.reliability_.shape == (8,)
    assert ((model.reliability_ >= 0) & (model.reliability_ <= 1)).all()


def test_a_fit_that_fails_changes_nothing(shifted):
    model = bioren.RenormAutoencoder(8, 16, training=QUICK).fit(shifted, "sample")
    before, attributes = model.embed(shifted), set(vars(model))
    with pytest.raises(KeyError, match="nope"):
        model.fit(shifted, "sample", layer="nope")
    with pytest.raises(ValueError, match="must name samples"):
        model.fit(shifted, "sample", reference="nope")
    assert set(vars(model)) == attributes
    assert_array_equal(model.embed(shifted), before)


def test_a_single_sample_is_a_reference_by_itself(shifted):
    one = shifted[shifted.obs["sample"] == "a"].copy()
    model = bioren.RenormAutoencoder(8, 16, training=QUICK).fit(one, "sample")
    assert_array_equal(model.alignment_.d, 0)
    assert_allclose(model.correct(one), one.X, atol=1e-5)
