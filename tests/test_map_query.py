from contextlib import nullcontext
from dataclasses import replace

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata import concat, read_h5ad
from numpy.testing import assert_allclose, assert_array_equal
from reference import PROFILES, digest, draw, effect, fitted, reference_cells
from scipy import sparse
from simulation import NearestNeighbors, sparse_like
from slots import fingerprint, furnished

import bioren
from bioren.adata.genes import match_genes
from bioren.adata.obs import one_sample
from bioren.effects.alignment import Removal

# Small simulated queries, of which types are withheld or genes are taken away, fit badly.
pytestmark = pytest.mark.filterwarnings("ignore:.*fit the reference badly")

COUNTS = (60, 50, 40, 20)


@pytest.fixture(scope="module")
def cells():
    return reference_cells()


@pytest.fixture(scope="module")
def model(cells):
    """A model that nothing here changes: see the last test."""
    return fitted(cells).learn_labels(cells, "type")


@pytest.fixture(scope="module")
def before(model):
    return digest(model)


@pytest.fixture(scope="module")
def queries():
    return concat(
        [draw(COUNTS, sample=name, seed=i, **effect(i)) for i, name in ((21, "q"), (22, "r"))]
    )


@pytest.fixture
def query(queries):
    return queries.copy()


@pytest.fixture(scope="module")
def expected(model, queries):
    return run(queries, model)


def run(query, model, batch_key="sample", **options):
    return bioren.tl.map_query(query, model, batch_key=batch_key, copy=True, **options)


def assert_same(found, expected, *, exact=True, genes=slice(None)):
    """Compare what is written of cells and of genes of the same names."""
    found = found[expected.obs_names]
    columns = ["bioren_mapping_score", "bioren_type_probability"]
    for left, right in (
        (found.obsm["X_bioren"], expected.obsm["X_bioren"]),
        (found[:, expected.var_names].layers["bioren"], expected.layers["bioren"]),
        (found.obs[columns].to_numpy(), expected.obs[columns].to_numpy()),
    ):
        if exact:
            assert_array_equal(left, right)
        else:
            assert_allclose(left, right, rtol=1e-4, atol=1e-4)
    assert found.obs["bioren_type"].tolist() == expected.obs["bioren_type"].tolist()


# What is written


DOCUMENTED = {("obsm", "X_bioren"), ("layers", "bioren"), ("uns", "bioren")}
OF_CELLS = ["bioren_mapping_score", "bioren_type", "bioren_type_probability"]


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_nothing_but_the_documented_slots_changes(form):
    adata = furnished(form)
    model = fitted(adata).learn_labels(adata, "type")
    before = fingerprint(adata)
    assert bioren.tl.map_query(adata, model) is None
    after = fingerprint(adata)
    assert set(after) - set(before) == DOCUMENTED
    assert list(adata.obs)[-4:] == ["bioren_sample", *OF_CELLS]
    assert (adata.obs["bioren_sample"] == "query").all()
    assert list(adata.var)[-1:] == ["bioren_mapped"]
    adata.obs = adata.obs.iloc[:, :-4]
    adata.var = adata.var.iloc[:, :-1]
    assert {slot: fingerprint(adata)[slot] for slot in before} == before


def test_types_and_shapes(expected):
    assert expected.obsm["X_bioren"].dtype == np.float32
    assert expected.obsm["X_bioren"].shape == (340, 10)
    assert expected.layers["bioren"].dtype == np.float32
    assert expected.layers["bioren"].shape == (340, 40)
    assert expected.var["bioren_mapped"].all()
    assert isinstance(expected.obs["bioren_type"].dtype, pd.CategoricalDtype)
    record = expected.uns["bioren"]
    by_sample = expected.obs.groupby("sample", observed=True)["bioren_mapping_score"].mean()
    assert_allclose(record["mapping_score"], by_sample)
    effects = bioren.tl.batch_effects(expected)
    assert set(effects["sample"]) == {"q", "r"}
    assert len(effects) == 80


def test_copy_leaves_the_query_alone_and_views_leave_their_parent(model, query, expected):
    before = fingerprint(query)
    assert_same(run(query, model, key_added="X_bioren"), expected)
    view = query[:170]
    bioren.tl.map_query(view, model, batch_key="sample")
    assert not view.is_view
    assert fingerprint(query) == before
    assert_same(view, expected[:170])
    bioren.tl.map_query(query, model, batch_key="sample", key_added="X_other")
    assert_array_equal(query.obsm["X_other"], expected.obsm["X_bioren"])


def test_mapping_twice_gives_the_same(model, query, expected):
    for _ in range(2):
        bioren.tl.map_query(query, model, batch_key="sample")
        assert_same(query, expected)


def test_a_file_of_the_model_serves_as_well(model, query, expected, tmp_path):
    model.save(tmp_path / "model.bioren")
    for path in (tmp_path / "model.bioren", str(tmp_path / "model.bioren")):
        assert_same(run(query, path), expected, exact=False)


def test_a_layer_instead_of_x(model, query, expected):
    query.layers["log"], query.X = query.X, np.full_like(query.X, np.nan)
    found = run(query, model, layer="log")
    assert_same(found, expected)
    assert found.uns["bioren"]["settings"]["layer"] == "log"


# What makes no difference


def test_the_order_of_genes_makes_no_difference(model, query, expected):
    order = np.random.default_rng(0).permutation(40)
    found = run(query[:, order].copy(), model)
    assert_same(found, expected)
    effects, others = (
        bioren.tl.batch_effects(of).set_index(["sample", "gene"]).sort_index()
        for of in (found, expected)
    )
    assert effects.equals(others)


def test_the_order_of_cells_makes_no_difference(model, query, expected):
    order = np.random.default_rng(0).permutation(query.n_obs)
    found = run(query[order].copy(), model)
    assert_same(found, expected, exact=False)


def with_genes(adata, names, values):
    x = np.hstack([adata.X, np.tile(np.float32(values), (adata.n_obs, len(names)))])
    var = pd.DataFrame(index=[*adata.var_names, *names])
    return type(adata)(x, obs=adata.obs.copy(), var=var)


@pytest.mark.parametrize("names", [["extra"], ["extra", "more", "extra"]])
def test_extra_genes_make_no_difference_and_stay_as_they_were(model, query, expected, names):
    twice = len(set(names)) < len(names)
    with pytest.warns(UserWarning, match="not unique") if twice else nullcontext():
        found = with_genes(query, names, 2.5)
    bioren.tl.map_query(found, model, batch_key="sample")
    assert_array_equal(found.layers["bioren"][:, 40:], 2.5)
    assert_array_equal(found.var["bioren_mapped"], [True] * 40 + [False] * len(names))
    assert_array_equal(found.layers["bioren"][:, :40], expected.layers["bioren"])
    assert_array_equal(found.obsm["X_bioren"], expected.obsm["X_bioren"])
    assert_array_equal(found.obs[OF_CELLS[0]], expected.obs[OF_CELLS[0]])


@pytest.mark.parametrize("sample", ["q", "r"])
def test_other_samples_make_no_difference(model, query, expected, sample):
    there = query.obs["sample"] == sample
    assert_same(run(query[there].copy(), model), expected[there.to_numpy()])
    alone = run(query[there].copy(), model, batch_key=None)
    assert_same(alone, expected[there.to_numpy()])
    assert list(alone.uns["bioren"]["samples"]) == ["query"]


@pytest.mark.parametrize(
    "rename",
    [
        {"q": "zebra", "r": "ant"},  # another order
        {"q": "a", "r": "b"},  # names of the reference's samples
        {"q": "1", "r": "ü / ☃"},
    ],
    ids=["order", "reference", "signs"],
)
def test_names_of_samples_make_no_difference(model, query, expected, rename):
    query.obs["sample"] = query.obs["sample"].astype(str).map(rename)
    assert_same(run(query, model), expected)


def test_several_columns_name_a_sample(model, query, expected):
    query.obs["one"], query.obs["two"] = "x", query.obs["sample"]
    assert_same(run(query, model, batch_key=["one", "two"]), expected)


@pytest.fixture(scope="module")
def sparse_world():
    adata = sparse_like(reference_cells())
    query = sparse_like(draw(COUNTS, seed=23, **effect(23)))
    model = fitted(adata).learn_labels(adata, "type")
    return model, query, run(query, model, None)


@pytest.mark.parametrize(
    "form",
    [
        sparse.csr_matrix,
        sparse.csc_matrix,
        sparse.csr_array,
        lambda x: da.from_array(x, chunks=(50, 17)),
        lambda x: da.from_array(x, chunks=(50, 40)).map_blocks(sparse.csr_matrix),
        lambda x: np.asfortranarray(x),
        lambda x: x.astype(np.float64),
    ],
    ids=["csr", "csc", "csr_array", "dask", "sparse dask", "fortran", "double"],
)
def test_the_kind_of_matrix_makes_no_difference(sparse_world, form):
    model, query, expected = sparse_world
    query = query.copy()
    query.X = form(query.X)
    assert_same(run(query, model, None), expected, exact=False)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_a_backed_query_is_read_from_its_file(sparse_world, tmp_path, form):
    model, query, expected = sparse_world
    query = query.copy()
    query.X = form(query.X)
    query.write_h5ad(tmp_path / "query.h5ad")
    written = (tmp_path / "query.h5ad").read_bytes()
    backed = read_h5ad(tmp_path / "query.h5ad", backed="r")
    bioren.tl.map_query(backed, model)
    assert_same(backed.to_memory(), expected, exact=False)
    backed.file.close()
    assert (tmp_path / "query.h5ad").read_bytes() == written


def test_half_precision_is_read_too(model, query, expected):
    query.X = query.X.astype(np.float16)
    found = run(query, model)
    assert found.layers["bioren"].dtype == np.float32
    assert_allclose(found.layers["bioren"], expected.layers["bioren"], atol=0.05)


def test_the_order_of_genes_makes_no_difference_in_sparse_matrices(sparse_world):
    model, query, _ = sparse_world
    query = query.copy()
    query.X = sparse.csr_matrix(query.X)
    expected = run(query, model, None)
    order = np.random.default_rng(1).permutation(40)
    for form in (sparse.csr_matrix, sparse.csc_matrix):
        shuffled = query[:, order].copy()
        shuffled.X = form(shuffled.X)
        assert_same(run(shuffled, model, None), expected)


# Genes that the query lacks


def spread(z):
    return np.sqrt(np.square(z - z.mean(axis=0)).sum(axis=1).mean())


def moved(found, expected):
    """Return how far cells moved in the embedding, in units of its spread."""
    left = found.obsm["X_bioren"] - expected.obsm["X_bioren"]
    return np.sqrt(np.square(left).sum(axis=1).mean()) / spread(expected.obsm["X_bioren"])


@pytest.fixture(scope="module")
def even():
    """Cells in the reference's composition and on its scale."""
    return draw((170, 190, 170, 70), seed=77)


def test_missing_genes_count_as_if_they_were_at_the_references_mean(model, even):
    missing = np.arange(40) % 4 == 1
    found = run(even[:, ~missing].copy(), model, None)
    mean = model.population_.profile.whole().mean
    at_mean = even.copy()
    at_mean.X[:, missing] = mean[missing]
    assert moved(run(at_mean, model, None), found) < 0.01


def test_missing_genes_lie_at_the_mean_for_the_network_exactly(model, even):
    mapper = model.mapper_
    bridge = bioren.AffineBridge(np.full((1, 30), 2.0), np.full((1, 30), 0.25))
    inputs = np.arange(10, 40)
    (whole,) = mapper._inputs(even.X[:, 10:], inputs, bridge)
    mean = model.alignment_.reference.mean
    assert_allclose(whole[:, :10], np.broadcast_to(mean[:10], (600, 10)), rtol=1e-5)
    assert_allclose(whole[:, 10:], 2 * even.X[:, 10:] + 0.25, rtol=1e-5)


def test_the_result_degrades_gently_with_missing_genes(model, even):
    expected = run(even, model, None)
    kinds = even.obs["type"].astype(str)
    distances = []
    for n in (38, 32, 24, 20):
        kept = np.random.default_rng(0).permutation(40)[:n]
        found = run(even[:, np.sort(kept)].copy(), model, None)
        distances.append(moved(found, expected))
        known, lacking = (of.obs[OF_CELLS[0]].mean() for of in (expected, found))
        assert lacking > known - 0.1
        assert (found.obs["bioren_type"].astype(str) == kinds).mean() > 0.97
    assert distances[0] < 0.3
    assert distances[-1] < 1
    assert distances[0] < distances[-1]


def test_few_genes_are_warned_of(model, even):
    with pytest.warns(UserWarning, match=r"only 19 of the 40 genes.*coarse"):
        found = run(even[:, :19].copy(), model, None)
    assert np.isfinite(found.layers["bioren"]).all()
    with pytest.warns(UserWarning, match="only 3 of the 40 genes"):
        found = run(even[:, :3].copy(), model, None)
    assert np.isfinite(found.obsm["X_bioren"]).all()


# What is removed


def type_means(x, adata):
    kinds = adata.obs["type"].astype(str)
    return {kind: x[(kinds == kind).to_numpy()].mean(axis=0) for kind in kinds.unique()}


@pytest.fixture(scope="module")
def target(model, cells):
    return type_means(model.correct(cells), cells)


@pytest.mark.parametrize("counts", [(200, 200, 200, 60), (500, 30, 30, 30), (20, 20, 20, 400)])
@pytest.mark.parametrize("seed", range(2))
def test_a_planted_effect_is_undone_in_expression_and_embedding(model, cells, target, counts, seed):
    query = draw(counts, seed=seed, **effect(50 + seed, 0.6))
    found = run(query, model, None)
    after = type_means(found.layers["bioren"], query)
    raw = type_means(query.X, query)
    for kind, mean in after.items():
        left, before = (np.abs(of - target[kind]).mean() for of in (mean, raw[kind]))
        assert left < 0.15
        assert left < 0.4 * before
    place = model.embed(cells)
    near = NearestNeighbors(n_neighbors=15).fit(place)
    near = near.kneighbors(found.obsm["X_bioren"], return_distance=False)
    kinds = cells.obs["type"].astype(str).to_numpy()[near]
    assert (kinds == query.obs["type"].astype(str).to_numpy()[:, None]).mean() > 0.97
    # As near to the reference's cells as these are to one another.
    own = type_means(place, cells)
    for kind, mean in type_means(found.obsm["X_bioren"], query).items():
        assert np.linalg.norm(mean - own[kind]) < 0.15 * spread(place)


def test_the_effect_found_is_the_one_planted(model):
    planted = effect(60, 0.6)
    found = run(draw((300, 300, 300, 90), seed=3, **planted), model, None)
    effects = bioren.tl.batch_effects(found).set_index("gene").loc[model.genes_]
    reference = model.population_.profile.whole()
    shift = planted["shift"] + (planted["scale"] - 1) * (reference.mean - 3)
    # Some of it the reference's own samples have on average.
    own = np.mean([effect(100 + i, 0.3)["shift"] for i in range(3)], axis=0)
    assert np.corrcoef(effects["d"] * reference.std(), shift - own)[0, 1] > 0.95


def test_cells_without_an_effect_stay(model):
    query = draw((200, 200, 200, 60), seed=4)
    own = np.mean([effect(100 + i, 0.3)["shift"] for i in range(3)], axis=0)
    query.X = (query.X + own).astype(np.float32)
    found = run(query, model, None)
    assert np.abs(found.layers["bioren"] - query.X).mean() < 0.15


def test_a_sample_of_the_reference_maps_to_its_own_place(model, cells):
    for sample in "abc":
        there = (cells.obs["sample"] == sample).to_numpy()
        part = cells[there].copy()
        found = run(part, model, None)
        place, own = found.obsm["X_bioren"], model.embed(part)
        assert np.sqrt(np.square(place - own).sum(axis=1).mean()) < 0.3 * spread(own)
        assert_allclose(found.layers["bioren"], model.correct(part), atol=0.5)
        assert np.abs(found.layers["bioren"] - model.correct(part)).mean() < 0.1


@pytest.mark.parametrize("kind", range(4))
def test_a_query_of_one_type_lands_on_it(model, cells, kind):
    query = draw([80 * (k == kind) for k in range(4)], seed=5, **effect(70, 0.4))
    found = run(query, model, None)
    assert (found.obs["bioren_type"] == f"type{kind}").mean() > 0.95
    assert np.abs(found.layers["bioren"].mean(axis=0) - PROFILES[kind]).mean() < 0.4


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_a_few_cells_are_mapped(model, n):
    query = draw((0, n, 0), seed=6)
    found = run(query, model, None)
    for values in (found.obsm["X_bioren"], found.layers["bioren"]):
        assert np.isfinite(values).all()
    # Below five cells a cell's neighbors are too few for a score.
    assert found.obs[OF_CELLS[0]].notna().all() == (n >= 5)
    assert found.obs[OF_CELLS[0]].isna().all() == (n < 5)
    assert (found.obs["bioren_type"] == "type1").all()
    assert_allclose(found.layers["bioren"], query.X, atol=1.5)


def test_a_cell_alone_of_its_sample_beside_others(model, query):
    query.obs["sample"] = ["single", *query.obs["sample"].astype(str)[1:]]
    found = run(query, model)
    alone = run(query[:1].copy(), model, None)
    assert_array_equal(found.obsm["X_bioren"][:1], alone.obsm["X_bioren"])


def mapped_with(model, query, **removal):
    """Map with other limits than the model was fitted with."""
    mapper = replace(model.mapper_, removal=Removal(**removal))
    genes = match_genes(query, model.genes_, model.population_.variable)
    nothing = np.zeros((query.n_obs, 0))
    return mapper.map(
        query.X, genes, one_sample(query), covariates=nothing, rng=np.random.default_rng(0)
    )


@pytest.fixture(scope="module")
def shifted():
    return draw((80, 80, 80, 30), seed=8, **effect(80, 0.8))


def test_strength_zero_leaves_expression_as_it_is(model, shifted):
    found = mapped_with(model, shifted, strength=0.0)
    assert_allclose(found.corrected, shifted.X, atol=1e-5)
    nothing = mapped_with(model, shifted, max_removed=(1.0, 0.0))
    assert_allclose(nothing.corrected, shifted.X, atol=1e-5)
    assert_allclose(nothing.embedding, found.embedding, atol=1e-3)
    # States and score are sought where all of the effect is removed.
    assert_array_equal(found.score, mapped_with(model, shifted).score)


@pytest.mark.parametrize("strength", [0.3, 0.7])
def test_strength_removes_a_share(model, shifted, strength):
    moves = [
        mapped_with(model, shifted, strength=s, max_removed=None).corrected - shifted.X
        for s in (strength, 1.0)
    ]
    assert np.linalg.norm(moves[0]) / np.linalg.norm(moves[1]) == pytest.approx(strength, abs=0.05)
    assert np.corrcoef(moves[0].ravel(), moves[1].ravel())[0, 1] > 0.97


@pytest.mark.parametrize("d_max", [0.1, 0.3, 1.0])
def test_no_gene_is_moved_beyond_the_limit(model, shifted, d_max):
    found = mapped_with(model, shifted, max_removed=(1.0, d_max))
    most = d_max * model.population_.profile.whole().std()
    moves = np.abs(found.corrected - shifted.X)
    assert (moves <= most + 1e-5).all()
    assert (moves > 0.5 * most).any()


@pytest.mark.parametrize("r_max", [1.05, 1.2])
def test_no_gene_is_rescaled_beyond_the_limit(model, shifted, r_max):
    scale = mapped_with(model, shifted, max_removed=(r_max, np.inf)).alignment.bridges.scale
    assert (scale <= r_max * (1 + 1e-9)).all()
    assert (scale >= (1 - 1e-9) / r_max).all()
    assert (np.abs(np.log(scale)) > 0.9 * np.log(r_max)).any()


def test_the_models_own_limits_are_those_of_the_mapping(cells, shifted):
    model = fitted(cells, strength=0.0)
    assert_allclose(run(shifted, model, None).layers["bioren"], shifted.X, atol=1e-5)


def test_constant_genes_stay_finite(model, query):
    query.X[:, 3] = 0.0
    query.X[:, 4] = 7.25
    found = run(query, model)
    assert np.isfinite(found.layers["bioren"]).all()
    assert np.isfinite(found.obsm["X_bioren"]).all()
    for column in (3, 4):  # as constant as before within each state of a sample
        for sample in "qr":
            there = (query.obs["sample"] == sample).to_numpy()
            assert found.layers["bioren"][there, column].std() < 1


def test_a_model_with_covariates_needs_them(cells, query):
    cells = cells.copy()
    cells.obs["depth"] = np.random.default_rng(0).normal(size=cells.n_obs)
    model = fitted(cells, covariates=["depth"])
    before = fingerprint(query)
    with pytest.raises(KeyError, match="depth"):
        run(query, model)
    assert fingerprint(query) == before
    query.obs["depth"] = 0.5
    assert np.isfinite(run(query, model).obsm["X_bioren"]).all()
    query.obs["depth"] = "deep"
    with pytest.raises(ValueError, match="expected numbers"):
        run(query, model)


# Adding what was mapped


@pytest.fixture
def growing(cells):
    return fitted(cells)


def test_adding_a_sample_updates_the_population_alone(growing, query):
    population, count = growing.population_, growing.population_.by_state.count.copy()
    others = {name: digest(getattr(growing, name)) for name in ("alignment_", "network_")}
    mapped = growing.map(query, batch_key="sample")
    assert growing.add(mapped) is growing
    added = growing.population_
    assert added.samples == ["a", "b", "c", "q", "r"]
    assert added.cells.to_dict() == population.cells.to_dict() | {"q": 170, "r": 170}
    assert_array_equal(added.by_state.count[:3], count)
    assert_allclose(added.by_state.count[3:].sum(axis=1), 170, rtol=1e-5)
    assert_allclose(added.by_state[3:].pooled().pooled().mean, query.X.mean(axis=0), rtol=1e-3)
    assert added.without(["q", "r"]).digest == population.digest
    for name, value in others.items():
        assert digest(getattr(growing, name)) == value
    # Its bridge brings it where mapping brought it.
    carried = added.bridges[4].apply(query.X[170:])
    there = run(query[170:].copy(), growing, None).layers["bioren"]
    assert np.abs(carried.mean(axis=0) - there.mean(axis=0)).mean() < 0.1


def test_what_was_added_counts_when_mapping_again(growing, query):
    before = run(query, growing)
    growing.add(growing.map(query, batch_key="sample"))
    after = run(query, growing)
    assert np.isfinite(after.obsm["X_bioren"]).all()
    assert moved(after, before) < 0.2


def test_a_sample_is_added_once(growing, query):
    mapped = growing.map(query, batch_key="sample")
    growing.add(mapped)
    digest = growing.population_.digest
    for names, message in (
        (None, "has a sample 'q' already"),
        (["new", "a"], "has a sample 'a' already"),
        (["new", "new"], "has a sample 'new' already"),
        (["new"], "one name for each of 2 samples"),
        ("three", "one name for each of 2 samples"),
        ([], "one name for each of 2 samples"),
    ):
        with pytest.raises(ValueError, match=message):
            growing.add(mapped, names)
        assert growing.population_.digest == digest  # nothing of it is added
    growing.add(mapped, ["new", "newer"])
    assert growing.population_.samples[-2:] == ["new", "newer"]


def test_genes_that_were_not_measured_are_added_as_expected(growing, query):
    strata = growing.population_.profile.by_state
    growing.add(growing.map(query[:, 10:].copy()), ["new"])
    added = growing.population_
    assert_allclose(added.by_state.mean[3][:, :10], strata.mean[:, :10], rtol=1e-5)
    assert_array_equal(added.bridges.scale[3, :10], 1)
    assert_array_equal(added.bridges.shift[3, :10], 0)
    after = added.profile.by_state
    assert_allclose(after.mean[:, :10], strata.mean[:, :10], rtol=1e-5)


def test_a_model_that_grew_survives_its_file(growing, query, tmp_path):
    growing.add(growing.map(query, batch_key="sample"))
    expected = run(query, growing)
    growing.save(tmp_path / "grown.bioren")
    again = bioren.load(tmp_path / "grown.bioren")
    assert again.population_.digest == growing.population_.digest
    assert_allclose(run(query, again).obsm["X_bioren"], expected.obsm["X_bioren"], atol=1e-5)


def test_a_published_model_maps_as_the_model_does(model, query, expected, tmp_path):
    model.publish(tmp_path / "shared.bioren", min_cells=3)
    shared = bioren.load(tmp_path / "shared.bioren")
    assert moved(run(query, shared), expected) < 0.2
    few = query[:, 8:].copy()
    found, of_model = run(few, shared), run(few, model)
    assert (found.obs["bioren_type"] == query.obs["type"].astype(str)).mean() > 0.97
    assert_allclose(found.obs[OF_CELLS[0]].mean(), of_model.obs[OF_CELLS[0]].mean(), atol=0.1)
    shared.add(shared.map(few, batch_key="sample"))
    assert shared.population_.cells[["q", "r"]].tolist() == [170, 170]
    assert np.isfinite(run(few, shared).obsm["X_bioren"]).all()


# The model stays as it is


def test_mapping_changes_nothing_in_the_model(model, before, query):
    run(query, model)
    with pytest.raises(ValueError, match="NaN"):
        run(type(query)(np.full((3, 40), np.nan), var=query.var), model, None)
    mapped = model.map(query)
    for values in (mapped.embedding, mapped.corrected, mapped.score):
        values[:] = -1  # what comes out is not what is kept
    mapped.by_state.mean[:] = -1
    assert digest(model) == before


def test_the_global_random_state_is_left_alone(model, query):
    np.random.seed(0)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    run(query, model)
    assert np.random.random() == expected  # noqa: NPY002
