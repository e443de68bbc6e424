import numpy as np
import pytest
import scanpy as sc
from anndata import concat, read_h5ad
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from reference import N_GENES, draw, effect, fitted, reference_cells
from simulation import simulate
from sklearn.metrics import roc_auc_score

import bioren
from bioren import AffineBridge, Moments
from bioren.effects.state_profile import StateProfile
from bioren.effects.states import frozen_states
from bioren.reference.confidence import (
    MIN_CELLS,
    MIN_VARIANCE,
    MappingConfidence,
    _fitted,
    averaging,
    distances,
)
from bioren.reference.mapping import Frame

# Small simulated queries, of which types are withheld or genes are taken away, fit badly.
pytestmark = pytest.mark.filterwarnings("ignore:.*fit the reference badly")

seeds = st.integers(0, 2**32 - 1)
SCORE = "bioren_mapping_score"

# From distances to probabilities


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    slope=st.floats(-20, 0),
    level=st.floats(-50, 50),
)
def test_what_is_farther_is_never_better_known(seed, slope, level):
    rng = np.random.default_rng(seed)
    familiarity = MappingConfidence(rng.normal(size=2), np.exp(rng.normal(size=2)), slope, level)
    near = np.exp(rng.normal(0, 5, (50, 2)))
    far = near * np.exp(np.abs(rng.normal(0, 2, (50, 2))))
    scores = familiarity.score(near), familiarity.score(far)
    for score in scores:
        assert ((score >= 0) & (score <= 1)).all()
    assert (scores[1] <= scores[0] + 1e-12).all()


@pytest.mark.parametrize("distance", [0.0, 1e-300, 1e300])
def test_extreme_distances_have_a_score(distance):
    score = MappingConfidence(np.zeros(2), np.full(2, 0.1), -20.0, 5.0).score(
        np.full((1, 2), distance)
    )
    assert 0 <= score[0] <= 1


@pytest.mark.parametrize("by", [0, 1])
def test_a_cell_is_far_that_is_far_by_either_distance(by):
    familiarity = MappingConfidence(np.zeros(2), np.ones(2), -2.0, 2 * np.log(2))
    near = np.ones((1, 2))
    far = near.copy()
    far[0, by] = np.exp(5)
    assert familiarity.score(near)[0] == pytest.approx(0.5)
    assert familiarity.score(far)[0] < 0.001


@settings(max_examples=40, deadline=None)
@given(seed=seeds, by=st.floats(0, 50))
def test_after_one_sample_what_all_cells_have_in_common_says_nothing(seed, by):
    rng = np.random.default_rng(seed)
    several = MappingConfidence(np.zeros(2), np.ones(2), -2.0, 3.0)
    one = several._replace(single=True)
    apart = np.exp(rng.normal(3, 1, (60, 2)))
    assert_allclose(one.score(apart * np.exp(by)), one.score(apart), atol=1e-9)
    assert (one.score(apart) >= several.score(apart)).all()
    # The nearest quarter is as well known as a typical cell; nearer cells are left as they are.
    assert (np.sort(one.score(apart))[-15:] >= several.score(np.ones((1, 2)))[0] - 1e-9).all()
    assert_array_equal(
        one.score(0.01 * apart / apart.max()), several.score(0.01 * apart / apart.max())
    )


def test_a_score_that_could_not_be_learned_is_missing():
    assert np.isnan(_fitted([]).level)
    assert np.isnan(_fitted([]).score(np.ones((3, 2)))).all()


@settings(max_examples=40, deadline=None)
@given(seed=seeds, n_pairs=st.integers(1, 4), sign=st.tuples(*[st.sampled_from([-1, 0, 1])] * 2))
def test_whatever_is_learned_distance_speaks_against_a_cell(seed, n_pairs, sign):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(n_pairs):
        known = rng.permutation(np.arange(80) < 50)
        pairs.append((np.exp(rng.normal(0, 0.5, (80, 2)) + np.outer(~known, sign)), known))
    learned = _fitted(pairs)
    assert learned.slope <= 0
    assert np.isfinite([learned.slope, learned.level]).all()
    assert (learned.unit > 0).all()


@pytest.mark.parametrize("direction", [-1, 1])
def test_two_distances_that_say_the_same_are_no_obstacle(direction):
    known = np.arange(100) < 50
    one = np.exp(np.random.default_rng(0).normal(0, 0.5, 100) + direction * ~known)
    learned = _fitted([(np.column_stack([one, one]), known)])
    score = learned.score(np.column_stack([one, one]))
    if direction == 1:
        assert roc_auc_score(known, score) > 0.9
    else:
        assert_array_equal(score, 0.5)


@pytest.mark.parametrize("n_unknown", [10, 50, 490])
def test_known_and_unknown_weigh_the_same_however_many_there_are(n_unknown):
    rng = np.random.default_rng(0)
    known = np.arange(500) >= n_unknown
    learned = _fitted([(np.exp(rng.normal(0, 0.5, (500, 2))), known)])
    assert learned.score(np.ones((1, 2)))[0] == pytest.approx(0.5, abs=0.1)


def test_each_withheld_group_weighs_the_same_within_itself():
    # Whatever is more frequent, the odds at the middle are the same.
    middle = []
    for n_known in (3000, 2000, 1000):
        known = np.arange(4000) < n_known
        found = np.exp(np.random.default_rng(0).normal(0, 0.5, (4000, 2)) + 2.0 * ~known[:, None])
        middle.append(_fitted([(found, known)]).score(np.full((1, 2), np.e))[0])
    assert_allclose(middle, middle[1], atol=0.05)
    assert 0.2 < middle[1] < 0.8


# Distances


def frame_of(counts=(50, 30, 20), n_genes=6, dims=4, seed=0):
    rng = np.random.default_rng(seed)
    counts = np.array(counts, dtype=float)
    level = rng.normal(0, 3, (len(counts), n_genes))
    strata = StateProfile(
        counts / counts.sum(), Moments(counts, level, counts[:, None] + 0 * level)
    )
    centers = rng.normal(0, 4, (len(counts), dims))
    variance = rng.uniform(0.001, 2, (len(counts), dims))
    places = Moments(counts, centers, counts[:, None] * variance)
    # Without what lies apart, states may lie elsewhere; distances are to where they have cells.
    elsewhere = Moments(counts, centers + 1, counts[:, None] + 0 * variance)
    return Frame(strata, frozen_states(centers), elsewhere, places)


def slow_distances(x, bridge, z, frame, states):
    """Return distances of two cells, which have no neighbors but themselves."""
    places, level = frame.coordinates, frame.profile.by_state.mean
    variance = places.m2 / places.count[:, None]
    weight = places.count / places.count.sum()
    least = [
        MIN_VARIANCE * sum(weight[k] * variance[k, d] for k in range(len(weight)))
        for d in range(z.shape[1])
    ]
    share = frame.states.nearest(z, states)
    found = []
    for i in range(len(z)):
        nearest = min(
            np.mean(
                [
                    (z[i, d] - places.mean[k, d]) ** 2 / max(variance[k, d], least[d])
                    for d in range(z.shape[1])
                ]
            )
            for k in states
        )
        expected = sum(share[i, j] * level[k] for j, k in enumerate(states))
        bridged = bridge.scale[0] * x[i] + bridge.shift[0]
        found.append([nearest, np.mean(np.square(bridged - expected))])
    return np.array(found)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_distances_agree_with_slow_loops(seed):
    rng = np.random.default_rng(seed)
    frame = frame_of(seed=seed)
    x, z = rng.normal(0, 3, (2, 6)), rng.normal(0, 4, (2, 4))
    bridge = AffineBridge(rng.uniform(0.5, 2, (1, 6)), rng.normal(size=(1, 6)))
    some = np.array([2, 0])
    near = averaging(x, bridge, frame, rng=rng)
    found = distances(x, bridge, z, frame=frame, near=near, among=[None, some])
    assert_allclose(found[0], slow_distances(x, bridge, z, frame, np.arange(3)))
    assert_allclose(found[1], slow_distances(x, bridge, z, frame, some))
    assert (found[1][:, 0] >= found[0][:, 0] - 1e-12).all()  # fewer states are no nearer


def test_distances_do_not_depend_on_the_order_of_cells():
    rng = np.random.default_rng(0)
    frame = frame_of()
    x, z = rng.normal(0, 3, (60, 6)), rng.normal(0, 4, (60, 4))
    bridge = AffineBridge(np.ones((1, 6)), np.zeros((1, 6)))
    order = rng.permutation(60)
    first, second = (
        distances(
            x[of],
            bridge,
            z[of],
            frame=frame,
            near=averaging(x[of], bridge, frame, rng=np.random.default_rng(1)),
            among=[None],
        )[0]
        for of in (np.arange(60), order)
    )
    assert_allclose(second, first[order], rtol=1e-6)


# On mapped cells

KNOWN = (60, 50, 40, 30)


@pytest.fixture(scope="module")
def model():
    return fitted(reference_cells())


def score(model, query, **options):
    found = bioren.tl.map_query(query, model, copy=True, **options)
    values = found.obs[SCORE].to_numpy()
    assert ((values >= 0) & (values <= 1)).all()
    return values, found


@pytest.mark.parametrize("n_unknown", [12, 60, 300])
@pytest.mark.parametrize("seed", range(2))
def test_a_type_that_the_reference_lacks_scores_low(model, n_unknown, seed):
    query = draw((*KNOWN, n_unknown), seed=seed, **effect(seed, 0.3))
    values, _ = score(model, query)
    known = (query.obs["type"] != "type4").to_numpy()
    assert roc_auc_score(known, values) > 0.97
    assert values[known].mean() > 0.5
    assert values[~known].mean() < 0.2


@pytest.mark.parametrize("missing", range(4))
def test_each_type_scores_low_where_it_is_held_out(missing):
    cells = reference_cells()
    model = fitted(cells[cells.obs["type"] != f"type{missing}"].copy())
    query = draw(KNOWN, seed=missing, **effect(missing, 0.3))
    values, _ = score(model, query)
    known = (query.obs["type"] != f"type{missing}").to_numpy()
    assert roc_auc_score(known, values) > 0.95
    assert values[~known].mean() < min(0.2, 0.5 * values[known].mean())


def test_the_samples_score_is_the_mean_of_its_cells(model):
    query = concat([draw(KNOWN, sample="q"), draw((20, 20, 20, 20, 80), sample="r", seed=1)])
    values, found = score(model, query, batch_key="sample")
    of_sample = found.uns["bioren"]["mapping_score"]
    assert_allclose(of_sample, [values[:180].mean(), values[180:].mean()])
    assert of_sample[0] > of_sample[1] + 0.2


def test_the_farther_a_type_lies_the_lower_it_scores(model):
    direction = np.random.default_rng(9).normal(size=N_GENES)
    scores = []
    for far in (0.0, 0.5, 1.0, 2.0, 4.0):
        query = draw((60, 60, 60, 60), seed=2)
        there = (query.obs["type"] == "type3").to_numpy()
        query.X[there] += np.float32(far * direction)
        scores.append(score(model, query)[0][there].mean())
    assert (np.diff(scores) < 0.02).all()
    assert scores[0] > 0.5
    assert scores[-1] < 0.1


@pytest.mark.parametrize("share", [0.75, 0.5])
def test_a_query_with_fewer_genes_is_judged_alike(model, share):
    query = draw((*KNOWN, 60), seed=5, **effect(5, 0.3))
    known = (query.obs["type"] != "type4").to_numpy()
    kept = np.sort(np.random.default_rng(1).permutation(N_GENES)[: int(share * N_GENES)])
    whole, _ = score(model, query)
    values, _ = score(model, query[:, kept].copy())
    assert values[known].mean() > whole[known].mean() - 0.1
    assert roc_auc_score(known, values) > 0.9


def test_cells_of_the_reference_itself_are_known(model):
    cells = reference_cells()
    for sample in "abc":
        values, _ = score(model, cells[cells.obs["sample"] == sample].copy())
        assert values.mean() > 0.6


def test_a_batch_effect_alone_does_not_make_cells_unknown(model):
    plain, _ = score(model, draw(KNOWN, seed=7))
    shifted, _ = score(model, draw(KNOWN, seed=7, **effect(7, 0.6)))
    assert shifted.mean() > plain.mean() - 0.15


@pytest.mark.filterwarnings("ignore:.*samples have hardly a cell state")
@pytest.mark.parametrize("sizes", [(6, 6, 6), (19, 19)])
def test_a_reference_that_is_too_small_gives_no_score(sizes, tmp_path):
    cells = simulate(sizes)
    assert max(sizes) < 2 * MIN_CELLS
    model = fitted(cells)
    found = bioren.tl.map_query(cells, model, batch_key="sample", copy=True)
    assert found.obs[SCORE].isna().all()
    assert np.isnan(found.uns["bioren"]["mapping_score"]).all()
    assert np.isfinite(found.obsm["X_bioren"]).all()
    model.save(tmp_path / "small.bioren")
    again = bioren.tl.map_query(cells, tmp_path / "small.bioren", copy=True)
    assert again.obs[SCORE].isna().all()


def test_a_reference_of_one_type_gives_no_false_certainty():
    rng = np.random.default_rng(0)
    cells = concat([draw((100,), sample=name, seed=i) for i, name in enumerate("ab")])
    found = bioren.tl.map_query(draw((50, 50), seed=rng.integers(99)), fitted(cells), copy=True)
    values = found.obs[SCORE].to_numpy()
    there = (found.obs["type"] == "type0").to_numpy()
    assert np.isnan(values).all() or values[there].mean() > values[~there].mean()


def test_a_reference_of_one_sample_is_enough():
    model = fitted(draw((80, 80, 80, 80), sample="only"))
    query = draw((*KNOWN, 60), seed=1, **effect(1, 0.3))
    values, _ = score(model, query)
    known = (query.obs["type"] != "type4").to_numpy()
    assert roc_auc_score(known, values) > 0.95


# Real cells


@pytest.fixture(scope="module")
def cellbench(real_data):
    adata = read_h5ad(real_data / "cellbench_5batch.h5ad")
    sc.pp.filter_genes(adata, min_cells=20)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=400, batch_key="batch")
    return adata[:, adata.var["highly_variable"]].copy()


@pytest.mark.parametrize("position", range(3))
def test_a_real_type_held_out_scores_low(cellbench, position):
    batches, kinds = cellbench.obs["batch"], cellbench.obs["cell_type"]
    held_out = kinds.value_counts().index[position]
    counts = cellbench.obs[kinds == held_out].groupby("batch", observed=True).size()
    in_query = batches == counts.idxmax()
    model = fitted(cellbench[~in_query & (kinds != held_out)].copy(), "batch")
    values, found = score(model, cellbench[in_query].copy())
    known = (found.obs["cell_type"] != held_out).to_numpy()
    assert roc_auc_score(known, values) > 0.9
    assert values[~known].mean() < 0.5 * values[known].mean()
