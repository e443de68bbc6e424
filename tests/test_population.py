from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import slow_moments
from anndata import concat
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from reference import PROFILES, draw, effect, fitted, reference_cells
from slots import fingerprint

import bioren
from bioren import AffineBridge, Moments, Population
from bioren.adata.reference_argument import read_reference, reference_text
from bioren.arrays.groups import Batches
from bioren.effects.constants import PRIOR_CELLS
from bioren.effects.state_profile import moments_by_state
from bioren.files.container import write

seeds = st.integers(0, 2**32 - 1)

N_GENES, N_STATES = 6, 3


def cells_of(seed, n_samples=3, n_cells=60):
    """Return random expression, samples and shares of cells, of which each sample has some."""
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(n_samples), rng.integers(0, n_samples, n_cells - n_samples)])
    share = rng.dirichlet(np.full(N_STATES, 0.2), n_cells)
    share[rng.random(n_cells) < 0.5] = np.eye(N_STATES)[rng.integers(N_STATES)]
    return rng.normal(3, 2, (n_cells, N_GENES)), codes, share


def population(x, codes, share, **fields):
    """Return the population that cells make, which no model has to be fitted for."""
    there = np.unique(codes)
    rows = np.searchsorted(there, codes)
    rng = np.random.default_rng(0)
    scale, shift = rng.uniform(0.5, 2, (9, N_GENES)), rng.normal(size=(9, N_GENES))
    given = {
        "genes": pd.Index([f"gene{g}" for g in range(N_GENES)]),
        "samples": ["abcdefghi"[code] for code in there],
        "by_state": moments_by_state(x, rows, len(there), share=share),
        "bridges": AffineBridge(scale[there], shift[there]),
        "in_reference": np.ones(len(there), dtype=bool),
        "variable": np.arange(4),
        "components": np.linalg.qr(rng.normal(size=(4, 2)))[0],
        "normalization": {"target_sum": 1e4},
    }
    return Population(**(given | fields))


def some_cells(cells, which):
    return population(*(part[which] for part in cells))


def assert_same(found, expected, atol=1e-3):
    """Compare populations up to single precision and a thousandth of a cell."""
    assert set(found.samples) == set(expected.samples)
    order = [found.samples.index(name) for name in expected.samples]
    ours, theirs = found.by_state[order], expected.by_state
    count = theirs.count[..., None]
    assert_allclose(ours.count, theirs.count, rtol=1e-4, atol=2e-3)
    assert_allclose(ours.mean * count, theirs.mean * count, rtol=1e-3, atol=atol)
    assert_allclose(ours.m2, theirs.m2, rtol=1e-3, atol=10 * atol)
    assert_array_equal(found.cells[expected.samples], expected.cells)


# Merge, subtract, without


@settings(max_examples=40, deadline=None)
@given(seed=seeds, n_parts=st.integers(2, 4))
def test_parts_merged_in_any_order_are_the_whole(seed, n_parts):
    rng = np.random.default_rng(seed)
    cells = cells_of(seed)
    part = rng.permutation(np.arange(60) % n_parts)
    parts = [some_cells(cells, part == i) for i in rng.permutation(n_parts)]
    merged = parts[0]
    for other in parts[1:]:
        merged = merged.merge(other)
    assert_same(merged, population(*cells))
    assert merged.by_state.mean.dtype == np.float32  # a file changes none


@settings(max_examples=40, deadline=None)
@given(seed=seeds, n_parts=st.integers(2, 4))
def test_subtracting_undoes_merging_in_any_order(seed, n_parts):
    rng = np.random.default_rng(seed)
    cells = cells_of(seed)
    part = rng.permutation(np.arange(60) % n_parts)
    left = population(*cells)
    for i in rng.permutation(np.arange(1, n_parts)):
        left = left.subtract(some_cells(cells, part == i))
    assert_same(left, some_cells(cells, part == 0), atol=1e-2)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_other_samples_come_and_go_without_a_trace(seed):
    cells = cells_of(seed)
    first, other = some_cells(cells, cells[1] < 2), some_cells(cells, cells[1] == 2)
    merged = first.merge(other)
    assert merged.samples == ["a", "b", "c"]
    assert merged.subtract(other).digest == first.digest
    assert merged.without("c").digest == first.digest
    assert merged.without(["a", "b"]).digest == other.digest


def test_one_cell_of_a_thousand_is_left():
    cells = cells_of(0, 1, 1001)
    one = np.arange(1001) == 0
    left = population(*cells).subtract(some_cells(cells, ~one))
    assert left.cells.to_dict() == {"a": 1}
    assert_allclose(left.by_state.count, some_cells(cells, one).by_state.count, atol=1e-3)


def test_a_sample_of_which_nothing_is_left_is_gone():
    cells = cells_of(1)
    left = population(*cells).subtract(some_cells(cells, cells[1] == 1))
    assert left.samples == ["a", "c"]
    assert len(left.bridges.scale) == len(left.in_reference) == 2


@pytest.mark.parametrize("samples", ["b", ["b"], ["a", "c"]])
def test_without_samples_is_the_population_of_the_others(samples):
    cells = cells_of(2)
    found = population(*cells).without(samples)
    there = [i for i, name in enumerate("abc") if name not in samples]
    assert found.digest == some_cells(cells, np.isin(cells[1], there)).digest


@pytest.mark.parametrize("samples", ["d", ["a", "d"], []])
def test_samples_that_are_not_there_are_named(samples):
    whole = population(*cells_of(0))
    for method in (whole.without, whole.relative_to):
        with pytest.raises(ValueError, match=r"[Tt]here are a, b, c"):
            method(samples)


def test_a_reference_is_left():
    whole = population(*cells_of(0))
    with pytest.raises(ValueError, match="No sample of the reference would be left"):
        whole.without(["a", "b", "c"])
    with pytest.raises(ValueError, match="No sample of the reference would be left"):
        whole.subtract(whole)
    of_one = replace(whole, in_reference=np.array([False, True, False]))
    with pytest.raises(ValueError, match="No sample of the reference would be left"):
        of_one.without("b")


@pytest.mark.parametrize(
    "changed",
    [
        {"genes": pd.Index([f"other{g}" for g in range(N_GENES)])},
        {"variable": np.arange(1, 5)},
        {"components": np.eye(4, 2)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_populations_of_other_states_are_kept_apart(changed):
    whole = population(*cells_of(0))
    other = replace(whole, **changed)
    for method in (whole.merge, whole.subtract):
        with pytest.raises(ValueError, match="not of the same genes and states"):
            method(other)


def test_no_more_is_subtracted_than_is_there():
    cells = cells_of(0)
    few, many = some_cells(cells, cells[1] == 0), population(*cells)
    with pytest.raises(ValueError, match="There are no samples b, c"):
        few.subtract(many)
    with pytest.raises(ValueError, match="Cannot take"):
        few.subtract(few.merge(few))


# Adding a sample


def newcomer(seed=5):
    x, _, share = cells_of(seed, 1, 20)
    by_state = moments_by_state(x, np.zeros(20, dtype=int), 1, share=share)[0]
    return by_state, AffineBridge(np.full(N_GENES, 1.5), np.full(N_GENES, -0.5))


def test_adding_a_sample_and_leaving_it_out_is_nothing():
    whole = population(*cells_of(0))
    added = whole.add("new", *newcomer())
    assert added.cells.to_dict() == whole.cells.to_dict() | {"new": 20}
    assert_array_equal(added.bridges.scale[-1], 1.5)
    assert added.without("new").digest == whole.digest
    assert added.digest != whole.digest


@pytest.mark.parametrize(
    ("in_reference", "wanted", "expected"),
    [
        ([True, True, True], None, True),
        ([True, False, True], None, False),
        ([True, False, True], True, True),
        ([True, True, True], False, False),
    ],
)
def test_a_newcomer_joins_the_reference_if_all_others_did(in_reference, wanted, expected):
    whole = population(*cells_of(0), in_reference=np.array(in_reference))
    added = whole.add("new", *newcomer(), in_reference=wanted)
    assert added.in_reference.tolist() == [*in_reference, expected]


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="has a sample 'b' already"):
        population(*cells_of(0)).add("b", *newcomer())


# What follows from the moments


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_bridged_moments_are_those_of_bridged_cells(seed):
    x, codes, share = cells_of(seed)
    whole = population(x, codes, share)
    carried = x * whole.bridges.scale[codes] + whole.bridges.shift[codes]
    count, mean, m2 = slow_moments.by_group(carried, codes, 3, share)
    found = whole.bridged()
    assert_allclose(found.count, count, rtol=1e-5, atol=1e-5)
    there = count[..., None] > 1e-3
    assert_allclose(found.mean * there, mean * there, rtol=1e-4, atol=1e-3)
    assert_allclose(found.m2, m2, rtol=1e-3, atol=1e-3)
    some = np.array([4, 1])
    assert_array_equal(whole.bridged(some).mean, found.mean[..., some])


@settings(max_examples=15, deadline=None)
@given(seed=seeds, n_reference=st.integers(1, 3))
def test_strata_are_those_of_a_slow_loop(seed, n_reference):
    cells = cells_of(seed)
    there = np.arange(3) < n_reference
    whole = population(*cells, in_reference=there)
    found, bridged = whole.profile, whole.bridged()
    for k in range(N_STATES):
        shares, weights, counts, m2 = [], [], [], 0.0
        for s in range(n_reference):
            n = bridged.count[s, k]
            shares.append(n / bridged.count[s].sum())
            weights.append(n / (n + PRIOR_CELLS))
            counts.append(n)
            m2 = m2 + bridged.m2[s, k]
        assert_allclose(found.composition[k], np.mean(shares))
        assert_allclose(found.by_state.count[k], np.sum(counts))
        assert_allclose(found.by_state.m2[k], m2)
        level = sum(w * bridged.mean[s, k] for s, w in enumerate(weights))
        if sum(weights) > 0:
            assert_allclose(found.by_state.mean[k], level / sum(weights))
    assert_allclose(found.composition.sum(), 1)


def additive(seed=0):
    """Return the population of cells of three states, well apart, whose samples are shifted."""
    rng = np.random.default_rng(seed)
    n = 6000
    codes, state = rng.integers(0, 3, n), rng.integers(0, N_STATES, n)
    shift = rng.normal(size=(3, N_GENES))
    level = rng.normal(0, 2, (N_STATES, N_GENES))
    x = level[state] + shift[codes] + rng.normal(0, 1, (n, N_GENES))
    return population(x, codes, np.eye(N_STATES)[state])


@pytest.mark.parametrize("chosen", ["a", "b", ["c"], ["a", "c"], None])
def test_another_reference_brings_all_to_its_scale(chosen):
    whole = additive()
    found = whole.relative_to(chosen)
    there = np.isin(["a", "b", "c"], chosen or ["a", "b", "c"])
    assert_array_equal(found.in_reference, there)
    target = whole.by_state.mean[there].mean(axis=0)
    left = np.abs(found.bridged().mean - target)  # the spread within states is 1
    assert left.mean() < 0.08
    assert left.max() < 0.3
    if there.sum() == 1:  # it stays as it is
        assert_allclose(found.bridges.scale[there], 1, atol=1e-6)
        assert_allclose(found.bridges.shift[there], 0, atol=1e-6)
        assert_allclose(found.profile.by_state.mean, target, rtol=1e-5)
    assert_array_equal(found.by_state.mean, whole.by_state.mean)
    assert found.relative_to(chosen).digest == found.digest


# The digest, and files


def test_the_digest_is_of_all_that_it_holds():
    whole = population(*cells_of(0))
    assert whole.digest == population(*cells_of(0)).digest
    seen = {whole.digest}
    for name, value in {
        "genes": pd.Index([f"other{g}" for g in range(N_GENES)]),
        "samples": ["a", "b", "d"],
        "by_state": Moments(whole.by_state.count, whole.by_state.mean, whole.by_state.m2 * 2),
        "bridges": AffineBridge(whole.bridges.scale, whole.bridges.shift + 1),
        "in_reference": np.array([True, True, False]),
        "variable": np.arange(1, 5),
        "components": np.eye(4, 2),
        "normalization": {"target_sum": None},
        "published": {"a": 9},
    }.items():
        seen.add(replace(whole, **{name: value}).digest)
    assert len(seen) == 10


def test_a_file_holds_all_of_it(tmp_path):
    whole = population(*cells_of(0)).relative_to("b")
    whole.save(tmp_path / "one.bioren")
    again = Population.load(tmp_path / "one.bioren")
    assert again.digest == whole.digest
    assert repr(again) == repr(whole)
    assert again.target_sum == 1e4
    assert_array_equal(again.profile.by_state.mean, whole.profile.by_state.mean)


# Published


@pytest.fixture(scope="module")
def published():
    return population(*cells_of(0, n_cells=200)).reduced()[0]


def test_a_published_population_tells_how_many_cells_there_were(published):
    assert published.samples == []
    assert published.cells.sum() == 200
    assert set(published.cells.index) == {"a", "b", "c"}
    for message, method in (
        ("none can be chosen", lambda: published.relative_to("a")),
        ("published already", published.reduced),
        ("has a sample 'a' already", lambda: published.add("a", *newcomer())),
    ):
        with pytest.raises(ValueError, match=message):
            method()


def test_samples_come_and_go_in_a_published_population_too(published):
    added = published.add("new", *newcomer())
    assert added.cells.to_dict() == published.cells.to_dict() | {"new": 20}
    assert added.without("new").digest == published.digest
    assert added.without("new").add("new", *newcomer()).digest == added.digest
    alone = replace(added, published=None, pooled=None)
    assert alone.cells.to_dict() == {"new": 20}
    assert added.subtract(alone).digest == published.digest
    assert published.merge(alone).digest == added.digest
    assert alone.merge(published).cells.sum() == 220


def test_a_sample_may_have_any_name_beside_a_published_population(published, tmp_path):
    one, other = (published.add(name, *newcomer()) for name in ("reference", "new"))
    assert one.samples == ["reference"]
    assert one.cells["reference"] == 20
    for part in ("count", "mean", "m2"):
        found, expected = (getattr(of.profile.by_state, part) for of in (one, other))
        assert_array_equal(found, expected)
    assert_array_equal(one.profile.composition, other.profile.composition)
    one.save(tmp_path / "file")
    again = Population.load(tmp_path / "file")
    assert again.digest == one.digest
    assert again.without("reference").digest == published.digest


def test_two_published_parts_together_are_all_of_it():
    whole = population(*cells_of(0, n_cells=300))
    first, second = whole.without("c"), whole.without(["a", "b"])
    states = set(first.reduced()[1]) & set(second.reduced()[1])
    if states != set(range(whole.by_state.count.shape[1])):
        pytest.skip("a state is missing in a part")
    both = first.reduced()[0].merge(second.reduced()[0])
    assert both.cells.to_dict() == whole.cells.to_dict()
    expected = whole.reduced()[0]
    assert both.pooled.n_samples == expected.pooled.n_samples == 3
    assert_allclose(both.pooled.by_state.count, expected.pooled.by_state.count, rtol=1e-4)
    assert_allclose(both.profile.composition, expected.profile.composition, rtol=1e-4)


def test_a_file_that_says_nothing_of_pooled_samples(tmp_path):
    stored = population(*cells_of(0)).contents()
    del stored[0]["pooled"]
    write(tmp_path / "file", "population", *stored)
    with pytest.raises(ValueError, match="lacks the entry 'pooled'"):
        Population.load(tmp_path / "file")


@pytest.mark.parametrize("min_cells", [-1, 0, 2])
def test_a_mean_of_two_is_never_published(min_cells):
    with pytest.raises(ValueError, match="3 or more"):
        population(*cells_of(0)).reduced(min_cells)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, min_cells=st.integers(3, 20))
def test_nothing_of_few_cells_is_published(seed, min_cells):
    whole = population(*cells_of(seed, n_cells=90))
    shared, states = whole.reduced(min_cells)
    told = whole.by_state.count.sum(axis=1) >= min_cells
    assert set(shared.cells.index) == set(np.array(["a", "b", "c"])[told])
    counts = whole.by_state.count[told].sum(axis=0)
    assert_array_equal(states, np.flatnonzero(counts >= min_cells))
    # What is left is that of the samples that are told.
    expected = replace(
        whole.without([n for n, here in zip("abc", told, strict=True) if not here])
        if not told.all()
        else whole
    ).profile.of_states(states)
    told_cells = counts[states]
    assert_allclose(shared.pooled.by_state.count, told_cells, rtol=1e-4)
    assert_allclose(shared.profile.composition, expected.composition, rtol=1e-4)
    assert_allclose(shared.profile.by_state.mean, expected.by_state.mean, rtol=1e-4, atol=1e-4)
    assert_allclose(shared.profile.by_state.var(), expected.by_state.var(), rtol=1e-3, atol=1e-4)


# The choice of a reference


@pytest.fixture(scope="module")
def model():
    return fitted(reference_cells())


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("population")
    model.population_.save(folder / "population.bioren")
    model.save(folder / "model.bioren")
    return folder


def test_what_a_reference_may_be(model, files):
    batches = Batches("sample", ["a", "b"], np.array([0, 1]))
    assert read_reference(None, batches) == (None, None)
    for reference, expected in (("b", [False, True]), (["a", "b"], [True, True])):
        in_reference, population = read_reference(reference, batches)
        assert in_reference.tolist() == expected
        assert population is None
    assert read_reference(model.population_, batches) == (None, model.population_)
    for path in (files / "population.bioren", str(files / "model.bioren")):
        in_reference, population = read_reference(path, batches)
        assert in_reference is None
        assert population.digest == model.population_.digest


def test_a_sample_comes_before_a_file_of_its_name(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.population_.save("a")
    batches = Batches("sample", ["a", "b"], np.array([0, 1]))
    assert read_reference("a", batches)[1] is None
    assert read_reference(Path("a"), batches)[1] is not None
    with pytest.raises(ValueError, match="must name samples"):
        read_reference("nowhere.bioren", batches)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_reference(Path("nowhere.bioren"), batches)


def test_a_record_names_the_reference(model):
    assert reference_text(None) is None
    assert reference_text(["a"]) == ["a"]
    assert reference_text(Path("x.bioren")) == "x.bioren"
    assert model.population_.digest.startswith(reference_text(model.population_).split()[1])


@pytest.fixture(scope="module")
def query():
    parts = [draw((60, 50, 40, 10), sample="q", seed=31, **effect(31))]
    parts.append(draw((20, 40, 60, 10), sample="r", seed=32, **effect(32)))
    return concat(parts)


def test_a_population_serves_as_reference_of_the_bridge(model, query, files):
    expected = bioren.pp.bridge(query, "sample", reference=model.population_, copy=True)
    for reference in (files / "population.bioren", str(files / "model.bioren")):
        found = bioren.pp.bridge(query, "sample", reference=reference, copy=True)
        assert_array_equal(found.layers["bioren"], expected.layers["bioren"])
    # Each sample by itself, and the effect is the one against the reference.
    target = model.correct(reference_cells())
    kinds = reference_cells().obs["type"].to_numpy()
    for sample in ("q", "r"):
        there = (query.obs["sample"] == sample).to_numpy()
        both = query[there].copy(), query[~there][:3].copy()
        found = bioren.pp.bridge(concat(both), "sample", reference=model.population_, copy=True)
        assert_array_equal(found.layers["bioren"][: there.sum()], expected.layers["bioren"][there])
        for kind in ("type0", "type1", "type2"):
            cells = there & (query.obs["type"] == kind).to_numpy()
            after = expected.layers["bioren"][cells].mean(axis=0)
            assert np.abs(after - target[kinds == kind].mean(axis=0)).mean() < 0.15
            assert np.abs(query.X[cells].mean(axis=0) - PROFILES[int(kind[-1])]).mean() > 0.25


def test_a_population_serves_as_reference_of_the_integration(model, query, quick, files):
    def integrate(reference):
        return bioren.tl.integrate(
            query, "sample", reference=reference, training=quick, progress=False, copy=True
        )

    expected, found = integrate(model.population_), integrate(files / "population.bioren")
    assert_array_equal(found.layers["bioren"], expected.layers["bioren"])
    assert_array_equal(found.obsm["X_bioren"], expected.obsm["X_bioren"])
    assert "population.bioren" in found.uns["bioren"]["settings"]["reference"]
    effects = bioren.tl.batch_effects(expected).pivot(index="sample", columns="gene", values="d")
    spread = model.population_.profile.whole().std()
    planted = effect(31)["shift"] / spread
    assert np.corrcoef(effects.loc["q", model.genes_], planted)[0, 1] > 0.8


def test_a_population_is_no_reference_of_an_embedding(model, query, files):
    query = query.copy()
    query.obsm["X_pca"] = np.random.default_rng(0).normal(size=(query.n_obs, 5))
    before = fingerprint(query)
    path = files / "population.bioren"
    for reference in (model.population_, path, str(path)):
        with pytest.raises(ValueError, match="reads no gene"):
            bioren.tl.integrate(query, "sample", use_rep="X_pca", reference=reference)
    assert fingerprint(query) == before


def test_genes_that_a_population_lacks_are_refused_with_advice(correct, model, query):
    query = query.copy()
    query.var_names = ["stranger", *query.var_names[1:]]
    before = fingerprint(query)
    with pytest.raises(ValueError, match=r"1 of 40 genes are not.*stranger.*isin"):
        correct(query, "sample", reference=model.population_)
    assert fingerprint(query) == before


def test_fewer_genes_in_another_order_than_a_population_has(model, query):
    expected = bioren.pp.bridge(query, "sample", reference=model.population_, copy=True)
    shuffled = query[:, ::-1].copy()
    found = bioren.pp.bridge(shuffled, "sample", reference=model.population_, copy=True)
    assert_allclose(found.layers["bioren"][:, ::-1], expected.layers["bioren"], atol=1e-5)
    few = query[:, 5:35].copy()
    found = bioren.pp.bridge(few, "sample", reference=model.population_, copy=True)
    assert_allclose(found.layers["bioren"], expected.layers["bioren"][:, 5:35], atol=0.15)


def test_genes_that_tell_no_state_apart_are_not_enough():
    adata = reference_cells()
    adata.var["highly_variable"] = np.arange(40) < 20
    population = fitted(adata).population_
    rest = adata[:, 20:].copy()
    rest.var["highly_variable"] = True
    with pytest.raises(ValueError, match="tell the reference's cell states apart"):
        bioren.pp.bridge(rest, "sample", reference=population)


def test_a_sample_weighs_the_same_in_what_was_published():
    # Samples of different sizes and compositions, and one that joins before or after.
    whole = population(*cells_of(3, n_cells=300))
    newcomer = population(*cells_of(5, n_cells=60))
    shared, states = whole.reduced(3)
    one = newcomer.by_state[0][states], newcomer.bridges[0]
    before, _ = whole.add("new", newcomer.by_state[0], newcomer.bridges[0]).reduced(3)
    after = shared.add("new", *one)
    assert_allclose(after.profile.composition, before.profile.composition, rtol=1e-4)
    assert_allclose(after.profile.by_state.count, before.profile.by_state.count, rtol=1e-4)
    assert_allclose(after.profile.by_state.mean, before.profile.by_state.mean, rtol=1e-3, atol=1e-3)
    assert after.without("new").digest == shared.digest


def test_what_is_published_survives_its_file(tmp_path):
    shared, _ = population(*cells_of(3, n_cells=300)).reduced(3)
    shared.save(tmp_path / "shared.bioren")
    again = Population.load(tmp_path / "shared.bioren")
    assert again.digest == shared.digest
    assert_array_equal(again.profile.composition, shared.profile.composition)
    assert_array_equal(again.profile.by_state.mean, shared.profile.by_state.mean)


def test_a_population_compares_within_its_own_states(model, query):
    for options in ({"labels_key": "type"}, {"standardize": False}):
        with pytest.raises(ValueError, match="within its own states"):
            bioren.pp.bridge(query, "sample", reference=model.population_, **options)


def test_one_sample_is_brought_to_a_population(model, query):
    one = query[query.obs["sample"] == "q"].copy()
    with pytest.raises(ValueError, match="one sample only"):
        bioren.pp.bridge(one, "sample")
    bioren.pp.bridge(one, "sample", reference=model.population_)
    both = query.copy()
    bioren.pp.bridge(both, "sample", reference=model.population_)
    there = (both.obs["sample"] == "q").to_numpy()
    assert_array_equal(one.layers["bioren"], both.layers["bioren"][there])


def test_a_query_joins_the_reference_that_it_was_mapped_onto(model, query):
    other = fitted(reference_cells()[::2].copy())
    with pytest.raises(ValueError, match="another reference"):
        other.add(model.map(query))
