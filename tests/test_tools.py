import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import read_h5ad, read_zarr
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from simulation import mixing, neighbors, purity, simulate, sparse_like
from slots import fingerprint, furnished

import bioren
from bioren.network.training import TrainingOptions


@pytest.fixture
def integrate(quick):
    def integrate(adata, batch_key="sample", **options):
        return bioren.tl.integrate(
            adata, batch_key, **({"training": quick, "progress": False} | options)
        )

    return integrate


# What is written


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_nothing_else_changes(integrate, form):
    adata = furnished(form)
    before = fingerprint(adata)
    assert integrate(adata, decoded=True) is None
    after = fingerprint(adata)
    assert set(after) - set(before) == {
        ("obsm", "X_bioren"),
        ("obsm", "bioren_decoded"),
        ("layers", "bioren"),
        ("uns", "bioren"),
    }
    assert {slot: after[slot] for slot in before} == before


def test_shapes_and_types(integrate, adata):
    adata.var["highly_variable"] = [True] * 12 + [False] * 8
    integrate(adata, n_latent=7, decoded=True)
    assert adata.obsm["X_bioren"].shape == (120, 7)
    assert adata.obsm["X_bioren"].dtype == np.float32
    assert adata.layers["bioren"].shape == (120, 20)
    assert adata.obsm["bioren_decoded"].shape == (120, 12)
    assert_array_equal(adata.uns["bioren"]["variable_genes"], adata.var_names[:12])
    assert_array_equal(adata.uns["bioren"]["history"]["epoch"], [0, 1])


def test_fewer_components_where_genes_are_few(integrate, adata):
    with pytest.warns(UserWarning, match="no more than 4 dimensions"):
        result = integrate(adata[:, :5].copy(), n_latent=30, copy=True)
    assert result.obsm["X_bioren"].shape == (120, 4)


def test_copy_leaves_the_input_alone(integrate, adata):
    before = fingerprint(adata)
    result = integrate(adata, key_added="X_even", copy=True)
    assert fingerprint(adata) == before
    assert list(result.obsm) == ["X_even"]


def test_a_layer_instead_of_x(integrate, adata):
    expected = integrate(adata, copy=True)
    adata.layers["log"] = adata.X
    adata.X = np.zeros_like(adata.X)
    result = integrate(adata, layer="log", copy=True)
    assert_array_equal(result.obsm["X_bioren"], expected.obsm["X_bioren"])
    assert result.uns["bioren"]["settings"]["layer"] == "log"


def test_same_seed_same_result(integrate, adata):
    first, second = integrate(adata, rng=4, copy=True), integrate(adata, rng=4, copy=True)
    assert_array_equal(first.obsm["X_bioren"], second.obsm["X_bioren"])
    assert_array_equal(first.layers["bioren"], second.layers["bioren"])


def test_the_global_random_state_is_left_alone(integrate, adata):
    import torch

    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    expected = np.random.random(), torch.rand(1)  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    integrate(adata)
    assert (np.random.random(), torch.rand(1)) == expected  # noqa: NPY002


def test_no_progress_bar_when_asked(integrate, adata, capsys):
    integrate(adata, progress=False)
    assert capsys.readouterr() == ("", "")
    integrate(adata, progress=True)
    assert "training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("write", "read"),
    [("write_h5ad", read_h5ad), ("write_zarr", read_zarr)],
    ids=["h5ad", "zarr"],
)
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")  # anndata announces its next default
def test_results_survive_a_file(integrate, tmp_path, write, read):
    pytest.importorskip("zarr")
    adata = simulate()
    adata.var_names = [f"HLA-A/{name}" for name in adata.var_names]  # a slash is a path in HDF5
    integrate(adata, decoded=True)
    getattr(adata, write)(tmp_path / "cells")
    again = read(tmp_path / "cells")
    for slot, key in (("obsm", "X_bioren"), ("obsm", "bioren_decoded"), ("layers", "bioren")):
        assert_array_equal(getattr(again, slot)[key], getattr(adata, slot)[key])
    assert bioren.tl.batch_effects(again).equals(bioren.tl.batch_effects(adata))
    record, expected = again.uns["bioren"], adata.uns["bioren"]
    assert set(record) == set(expected)
    np.testing.assert_equal(record["settings"], expected["settings"])
    assert_array_equal(record["history"]["held_out"], expected["history"]["held_out"])
    assert_array_equal(record["variable_genes"], expected["variable_genes"])


def test_results_serve_scanpy(integrate, adata):
    integrate(adata)
    sc.pp.neighbors(adata, use_rep="X_bioren", n_neighbors=5)
    assert adata.obsp["distances"].shape == (120, 120)
    sc.pp.pca(adata, layer="bioren", n_comps=5)


# What is removed


def test_samples_mix_and_types_stay_apart(integrate):
    composition = [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2]]
    adata = simulate((150, 150), n_genes=60, composition=composition)
    integrate(adata)
    kinds, samples = adata.obs["type"], adata.obs["sample"]
    before, after = adata.X, adata.obsm["X_bioren"]
    assert mixing(before, samples) < 0.05
    assert mixing(after, samples) > 0.2
    assert purity(after, kinds) > 0.98


def test_random_halves_stay_as_they_are(integrate):
    adata = simulate((100, 100), shift=0, log_scale=0)
    result = integrate(adata, copy=True)
    assert np.abs(result.layers["bioren"] - adata.X).mean() < 0.02 * adata.X.std()
    untouched = integrate(adata, strength=0, copy=True)
    pairs = zip(
        neighbors(result.obsm["X_bioren"]), neighbors(untouched.obsm["X_bioren"]), strict=True
    )
    assert np.mean([len(set(a) & set(b)) / 15 for a, b in pairs]) > 0.9


def test_composition_alone_is_no_batch_effect(integrate):
    adata = simulate((200, 200), composition=[[0.9, 0.1], [0.1, 0.9]], shift=0, log_scale=0)
    integrate(adata)
    moved = (adata.layers["bioren"] - adata.X) / adata.X.std(axis=0)
    by_group = adata.obs.groupby(["sample", "type"], observed=True).indices.values()
    moves = np.array([np.abs(moved[cells].mean(axis=0)) for cells in by_group])
    assert np.quantile(moves, 0.95) < 0.1


def test_a_type_in_one_sample_alone_survives(integrate):
    adata = simulate((150, 150), composition=[[0.5, 0.5, 0], [0.4, 0.3, 0.3]], n_genes=60)
    integrate(adata)
    assert purity(adata.obsm["X_bioren"], adata.obs["type"] == "type2") > 0.98


def test_strength_zero_leaves_expression(integrate, adata):
    integrate(adata, strength=0)
    assert_allclose(adata.layers["bioren"], adata.X, atol=1e-5)


def test_a_reference_sample_keeps_its_expression(integrate, adata):
    integrate(adata, reference="b")
    there = (adata.obs["sample"] == "b").to_numpy()
    assert_allclose(adata.layers["bioren"][there], adata.X[there], atol=1e-4)


# An embedding instead of genes


@pytest.fixture
def embedded():
    adata = simulate((150, 150), n_genes=60, shift=1)
    adata.obsm["X_pca"] = np.linalg.svd(adata.X - adata.X.mean(axis=0))[0][:, :8] * 10
    return adata


def test_an_embedding_is_integrated_and_no_gene_is_read(embedded):
    embedded.X = np.full_like(embedded.X, np.nan)
    before = fingerprint(embedded)
    assert bioren.tl.integrate(embedded, "sample", use_rep="X_pca") is None
    after = fingerprint(embedded)
    assert set(after) - set(before) == {("obsm", "X_bioren")}
    assert {slot: after[slot] for slot in before} == before
    samples, kinds = embedded.obs["sample"], embedded.obs["type"]
    assert mixing(embedded.obsm["X_pca"], samples) < 0.1
    assert mixing(embedded.obsm["X_bioren"], samples) > 0.3
    assert purity(embedded.obsm["X_bioren"], kinds) > 0.98


def test_an_embedding_with_strength_zero_stays(embedded):
    bioren.tl.integrate(embedded, "sample", use_rep="X_pca", strength=0, key_added="X_same")
    assert_allclose(embedded.obsm["X_same"], embedded.obsm["X_pca"], atol=1e-6)


@pytest.mark.parametrize("strength", [0.3, 0.7])
def test_an_embedding_keeps_what_strength_leaves(embedded, strength):
    for name, given in (("none", 0), ("some", strength), ("all", 1)):
        bioren.tl.integrate(embedded, "sample", use_rep="X_pca", strength=given, key_added=name)
    none, some, everything = (embedded.obsm[name] for name in ("none", "some", "all"))
    assert_allclose(some, (1 - strength) * none + strength * everything, atol=1e-5)


# What is known of the cells


def treated(seed=0):
    """Cells half of which carry a treatment in sample "b"; nobody is treated elsewhere.

    Returns the cells, of which obs["control"] says who is not treated, and the effect per gene.
    """
    rng = np.random.default_rng(seed)
    adata = simulate((120, 120, 120), n_genes=30, log_scale=0, seed=seed)
    effect = rng.normal(size=30) * (rng.random(30) < 0.4)
    control = (adata.obs["sample"] != "b") | (rng.random(360) < 0.5)
    adata.X += np.outer(~control, effect).astype(np.float32)
    adata.obs["control"] = control
    adata.obsm["X_pca"] = np.linalg.svd(adata.X - adata.X.mean(axis=0))[0][:, :8] * 10
    return adata, effect


def treatment(x, adata, *, controls=False):
    """Return the mean difference of treated cells from the other samples', within types.

    controls: the difference of the treated sample's controls instead.
    """
    there = (adata.obs["sample"] == "b").to_numpy()
    cells = there & (adata.obs["control"] == controls).to_numpy()
    kinds = [(adata.obs["type"] == kind).to_numpy() for kind in adata.obs["type"].unique()]
    return np.mean(
        [x[kind & cells].mean(axis=0) - x[kind & ~there].mean(axis=0) for kind in kinds], axis=0
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_treatment_stays_if_the_effect_is_taken_from_controls(correct, seed):
    adata, effect = treated(seed)
    with_controls = correct(adata, "sample", controls_key="control", copy=True)
    without = correct(adata, "sample", copy=True)

    def kept(result):  # share of the treatment's effect
        return treatment(result.layers["bioren"], adata) @ effect / (effect @ effect)

    assert kept(with_controls) == pytest.approx(1, abs=0.1)
    assert kept(without) < 0.7
    # The batch effect itself is removed from all.
    controls = adata.obs["control"].to_numpy()
    left = [
        np.var([x[controls & (adata.obs["sample"] == s)].mean(axis=0) for s in "abc"], axis=0)
        for x in (with_controls.layers["bioren"], adata.X)
    ]
    assert left[0].mean() < 0.05 * left[1].mean()


@pytest.mark.parametrize("use_rep", [None, "X_pca"])
def test_a_treatment_stays_in_the_embedding_too(integrate, use_rep):
    adata, _ = treated()
    integrate(adata, use_rep=use_rep, controls_key="control", key_added="with")
    integrate(adata, use_rep=use_rep, key_added="without")
    sizes = [np.linalg.norm(treatment(adata.obsm[key], adata)) for key in ("with", "without")]
    assert sizes[0] > 1.5 * sizes[1]
    # Its controls lie where the other samples' cells are.
    left, before = (
        np.linalg.norm(treatment(adata.obsm[key], adata, controls=True))
        for key in ("with", "X_pca")
    )
    assert left < 0.25 * before


@pytest.mark.parametrize("known", [{}, {"labels_key": "type"}])
def test_controls_everywhere_are_as_good_as_none(correct, adata, known):
    adata.obs["all"] = True
    result = correct(adata, "sample", controls_key="all", copy=True, **known)
    expected = correct(adata, "sample", copy=True, **known)
    assert_array_equal(result.layers["bioren"], expected.layers["bioren"])
    for slot in result.obsm:
        assert_array_equal(result.obsm[slot], expected.obsm[slot])


def alike(seed=0):
    """Cells of a type in both samples, and of two much alike, one in each sample.

    The second genes are higher by 0.6 in the third type than in the second.
    """
    composition = [[0.5, 0.5, 0], [0.5, 0, 0.5]]
    adata = simulate(
        (150, 150), n_genes=40, composition=composition, shift=0.3, log_scale=0, seed=seed
    )
    shift = adata.uns["planted_shift"]
    one, other = ((adata.obs["type"] == kind).to_numpy() for kind in ("type1", "type2"))
    profiles = adata.X[one].mean(axis=0) - shift[0], adata.X[other].mean(axis=0) - shift[1]
    adata.X[other] += (profiles[0] - profiles[1]).astype(np.float32)
    adata.X[other, ::2] += 0.6
    adata.obsm["X_pca"] = np.linalg.svd(adata.X - adata.X.mean(axis=0))[0][:, :8] * 10
    return adata


def between(x, adata):
    """Return the difference of the two types' means."""
    one, other = ((adata.obs["type"] == kind).to_numpy() for kind in ("type1", "type2"))
    return x[other].mean(axis=0) - x[one].mean(axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_types_that_labels_alone_tell_apart_stay_apart(correct, seed):
    adata = alike(seed)

    def difference(**options):  # of the second genes, and of the others
        found = between(correct(adata, "sample", copy=True, **options).layers["bioren"], adata)
        return found[::2].mean() - found[1::2].mean()

    assert difference(labels_key="type") == pytest.approx(0.6, abs=0.15)
    assert difference() < 0.4


@pytest.mark.parametrize("use_rep", [None, "X_pca"])
def test_types_that_labels_alone_tell_apart_stay_apart_in_the_embedding(integrate, use_rep):
    adata = alike()
    integrate(adata, use_rep=use_rep, labels_key="type", key_added="with")
    integrate(adata, use_rep=use_rep, key_added="without")
    sizes = [np.linalg.norm(between(adata.obsm[key], adata)) for key in ("with", "without")]
    assert sizes[0] > 1.5 * sizes[1]


@pytest.mark.parametrize("use_rep", [None, "X_pca"])
def test_covariates_are_removed_in_part_and_types_stay(integrate, use_rep):
    rng = np.random.default_rng(0)
    adata = simulate((200, 200), n_genes=40, composition=np.full((2, 2), 0.5))
    adata.obs["depth"] = depth = rng.normal(size=400)
    adata.X += np.outer(depth, 0.1 * rng.normal(size=40)).astype(np.float32)
    adata.obsm["X_pca"] = np.linalg.svd(adata.X - adata.X.mean(axis=0))[0][:, :8] * 10
    integrate(adata, use_rep=use_rep, key_added="without")
    integrate(adata, use_rep=use_rep, covariates=["depth"], key_added="with")

    def explained(z):  # share of the variance within types that goes with depth
        shares = []
        for kind in adata.obs["type"].unique():
            cells = (adata.obs["type"] == kind).to_numpy()
            y, c = z[cells] - z[cells].mean(axis=0), depth[cells] - depth[cells].mean()
            shares.append(np.square(y.T @ c).sum() / (c @ c) / np.square(y).sum())
        return np.array(shares)

    assert (explained(adata.obsm["with"]) < 0.93 * explained(adata.obsm["without"])).all()
    before, after = (purity(adata.obsm[key], adata.obs["type"]) for key in ("without", "with"))
    assert after > before - 0.01


def test_what_was_given_is_recorded_and_survives_a_file(integrate, tmp_path):
    adata, _ = treated()
    adata.obs["lab"], adata.obs["depth"] = np.arange(360) % 2, np.linspace(0, 1, 360)
    given = {
        "labels_key": "type",
        "covariates": ["depth"],
        "controls_key": "control",
        "max_removed": (1.5, 2.0),
        "strength": 0.9,
    }
    integrate(adata, ["sample", "lab"], **given)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    record = read_h5ad(tmp_path / "cells.h5ad").uns["bioren"]
    assert list(record["batch_key"]) == ["sample", "lab"]
    assert list(record["samples"]) == [f"{s} + {n}" for s in "abc" for n in (0, 1)]
    for name, value in given.items():
        assert_array_equal(record["settings"][name], value)
    integrate(adata, covariates="depth")
    assert_array_equal(adata.uns["bioren"]["settings"]["covariates"], ["depth"])


# The effects


def test_effects_have_a_row_per_sample_and_gene(integrate, adata):
    integrate(adata)
    table = bioren.tl.batch_effects(adata)
    errors = ["standard_error_r", "standard_error_d"]
    counts = ["cells", "n_measured"]
    of_effects = ["r", "d", *errors, "standardized", "removed", "kept", "removed_r"]
    assert list(table) == ["sample", "gene", *counts, *of_effects]
    assert (table["n_measured"] == table["cells"]).all()
    assert table["standardized"].dtype == bool
    assert table["standardized"].all()
    assert_allclose(table["removed"] + table["kept"], 1)
    assert list(table["gene"][:20]) == list(adata.var_names)
    assert list(table["sample"].unique()) == ["a", "b", "c"]
    assert table["removed"].between(0, 1).all()
    assert (table["r"] > 0).all()
    one = table[(table["sample"] == "b") & (table["gene"] == "gene3")].iloc[0]
    spread = adata.X[:, 3].std()
    assert one["d"] * spread == pytest.approx(adata.uns["planted_shift"][1, 3], abs=0.35)


@pytest.mark.parametrize("uns", [{}, {"bioren": {"unrelated": 1}}])
def test_effects_before_a_run(adata, uns):
    adata.uns = uns
    with pytest.raises(KeyError, match=r"Run bioren.tl.integrate or bioren.pp.bridge"):
        bioren.tl.batch_effects(adata)


def test_effects_say_whether_cells_were_compared_within_states(adata):
    bioren.pp.bridge(adata, "sample", standardize=False)
    assert not bioren.tl.batch_effects(adata)["standardized"].any()


def test_effects_of_an_earlier_version_are_refused_and_named(adata):
    bioren.pp.bridge(adata, "sample")
    adata.uns["bioren"]["standard_error"] = adata.uns["bioren"].pop("standard_error_d")
    with pytest.raises(KeyError, match=r"lacks standard_error_d: an earlier version .* again"):
        bioren.tl.batch_effects(adata)


def test_the_error_of_r_is_how_much_r_varies_over_repeated_experiments():
    found = [simulate((80, 40), n_genes=30, shift=0, log_scale=0, seed=s) for s in range(40)]
    for adata in found:
        bioren.pp.bridge(adata, "sample", reference="a", labels_key="type")
    tables = [bioren.tl.batch_effects(adata).query("sample == 'b'") for adata in found]
    # r is drawn towards 1 as if by ten cells more (see `standardize`): undone here.
    spread = np.log([table["r"] for table in tables]).std(axis=0) * (40 + 10) / 40
    error = np.mean([table["standard_error_r"] / table["r"] for table in tables], axis=0)
    assert spread.mean() == pytest.approx(error.mean(), rel=0.15)


def test_effects_are_the_same_by_either_function(integrate):
    adata = sparse_like(simulate())
    integrate(adata)
    bioren.pp.bridge(adata, "sample", key_added="alone")
    assert bioren.tl.batch_effects(adata).equals(bioren.tl.batch_effects(adata, key="alone"))


def test_options_are_those_given(integrate, adata):
    integrate(adata, training=TrainingOptions(max_epochs=0))
    assert_array_equal(adata.uns["bioren"]["history"]["epoch"], [0])


def test_labels_of_some_cells_part_neither_samples_nor_labeled_cells(integrate):
    adata = simulate((150, 150), n_genes=60, shift=0.5, seed=3)
    missing = np.random.default_rng(0).random(adata.n_obs) < 0.3
    for without in (missing, (adata.obs["sample"] == "b").to_numpy()):
        adata.obs["kind"] = adata.obs["type"].astype(object).where(~without)
        z = integrate(adata, labels_key="kind", copy=True).obsm["X_bioren"]
        assert mixing(z, adata.obs["sample"]) > 0.3
        assert purity(z, adata.obs["type"]) > 0.98
        if without is missing:
            assert mixing(z, pd.Series(without)) > 0.25  # chance: .42


def test_what_of_r_is_removed_is_what_expression_was_rescaled_by(correct):
    adata = simulate((200, 200), n_genes=30, log_scale=0.4)
    correct(adata, "sample", max_removed=(1.3, np.inf))
    table = bioren.tl.batch_effects(adata).set_index(["sample", "gene"])
    sample, kind = adata.obs["sample"], adata.obs["type"]

    def spread(x):
        """Within types, by sample and gene."""
        variance = pd.DataFrame(x, columns=adata.var_names).groupby(
            [sample.astype(str).to_numpy(), kind.astype(str).to_numpy()]
        )
        return np.sqrt(variance.var().groupby(level=0).mean()).stack()

    before, after = spread(adata.X), spread(adata.layers["bioren"])
    scale = (after / before).reindex(table.index)
    log_r = np.log(table["r"])
    assert_allclose(np.exp(-log_r * table["removed_r"]), scale, rtol=0.02)
    assert table["removed_r"].between(-1e-6, 1 + 1e-6).all()
    held_back = np.abs(log_r) > np.log(1.5)
    assert held_back.any()
    assert_allclose(
        table["removed_r"][held_back] * np.abs(log_r)[held_back], np.log(1.3), rtol=0.05
    )
    del adata.uns["bioren"]["removed_r"]
    assert bioren.tl.batch_effects(adata)["removed_r"].isna().all()
