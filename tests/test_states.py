from dataclasses import replace

import numpy as np
import pytest
import slow_shifts
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist
from slow_moments import by_group

from bioren.arrays.moments import Moments
from bioren.effects.states import CellFacts, ConditionalBridge, StateOptions, default_n_states


def embedding(seed=0, *, types=((0, 1), (0, 1)), n_cells=300, n_dims=10, effect=0.0):
    """Cells of a few types around their centers; each sample shifts each type at random.

    Returns z, the cells' facts (sample alone), types, and planted shifts (samples x types x dims).
    """
    rng = np.random.default_rng(seed)
    n_types = 1 + max(max(some) for some in types)
    centers = 5 * np.linalg.qr(rng.normal(size=(n_dims, n_dims)))[0][:n_types]
    codes = np.repeat(np.arange(len(types)), n_cells)
    kind = np.concatenate([rng.choice(some, n_cells) for some in types])
    shifts = effect * rng.normal(size=(len(types), n_types, n_dims)) / np.sqrt(n_dims)
    z = centers[kind] + shifts[codes, kind] + rng.normal(0, 0.5, (len(kind), n_dims))
    return z, CellFacts(codes), kind, shifts


def informed(seed=0, *, effect=2.0, n_cells=300):
    """The same cells with two covariates, the first of which moves them, and labels of a half."""
    z, facts, kind, _ = embedding(seed, effect=effect, n_cells=n_cells)
    rng = np.random.default_rng(seed)
    covariates = rng.normal([2, 0], [3, 1], (len(z), 2))
    z = z + covariates[:, [0]] * rng.normal(0, 0.1, z.shape[1])
    labels = np.where(rng.random(len(z)) < 0.5, kind, -1)
    return z, CellFacts(facts.codes, covariates, labels), kind


def fit(z, facts, n_samples=2, *, seed=0, **options):
    return ConditionalBridge.fit(z, facts, n_samples, rng=np.random.default_rng(seed), **options)


def neighbors(z, k=15):
    return np.argsort(cdist(z, z) + 1e9 * np.eye(len(z)), axis=1)[:, :k]


def kept_neighbors(before, after, cells=slice(None)):
    old, new = neighbors(before)[cells], neighbors(after)[cells]
    return np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(old, new, strict=True)])


def apart(z, facts, kind, k):
    """Distance between the two samples' centers of a type."""
    a, b = (z[(facts.codes == s) & (kind == k)].mean(axis=0) for s in (0, 1))
    return np.linalg.norm(a - b)


def between(z, kind, k, other):
    """Distance between the centers of two types."""
    return np.linalg.norm(z[kind == k].mean(axis=0) - z[kind == other].mean(axis=0))


def oracle(bridge, cell, sample, covariates=(), label=-1):
    """Return moved cell and its shares, one cell at a time, by the formulas of Korsunsky 2019.

    Covariates are regressed out within states, a known label rules out the states of others.
    """
    covariates = np.asarray(covariates) / bridge.unit
    possible = np.ones(len(bridge.iterations[0].centers))
    if bridge.state_labels is not None and label >= 0 and label in bridge.state_labels:
        possible = np.isin(bridge.state_labels, [label, -1]).astype(float)
    moved = cell
    for step in bridge.iterations:
        cosine = step.centers @ moved / np.linalg.norm(moved)
        weight = possible * np.exp(-2 * (1 - cosine) / bridge.options.width)
        weight = weight * np.exp(step.log_odds[sample])
        share = weight / weight.sum()
        moved = cell.astype(float)
        for k, p in enumerate(share):
            slope = (covariates - step.levels[sample, k]) @ step.slopes[k]
            moved = moved - p * (step.shifts[sample, k] + slope)
    return moved + share @ bridge.retained[sample], share


# The fitted bridge is a pure function of a cell and its sample


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("known", ["nothing", "covariates", "labels", "both"])
def test_each_cell_by_the_formulas(known, strength):
    z, facts, _ = informed(n_cells=100)
    if known in ("nothing", "labels"):
        facts = facts._replace(covariates=None)
    if known in ("nothing", "covariates"):
        facts = facts._replace(labels=None)
    bridge = fit(z, facts, strength=strength)
    moved, share = bridge.apply(z, facts), bridge.states(z, facts)
    for i in range(0, len(z), 17):
        one = facts.of(slice(i, i + 1))
        covariates = () if one.covariates is None else one.covariates[0]
        label = -1 if one.labels is None else one.labels[0]
        wanted, wanted_share = oracle(bridge, z[i], one.codes[0], covariates, label)
        assert_allclose(moved[i], wanted, rtol=1e-7, atol=1e-9)
        assert_allclose(share[i], wanted_share, rtol=1e-6, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), strength=st.floats(0, 1))
def test_what_is_carried_over_and_what_is_kept_make_the_result(seed, strength):
    z, facts, _ = informed(seed % 5, n_cells=40)
    bridge = fit(z, facts, seed=seed, n_states=5, strength=strength)
    full, share, kept, _ = bridge.place(z, facts)
    assert_array_equal(full + kept, bridge.apply(z, facts))
    assert_array_equal(share, bridge.states(z, facts))
    whole = fit(z, facts, seed=seed, n_states=5)
    assert_allclose(full, whole.apply(z, facts), atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(60)), cuts=st.lists(st.integers(0, 60), max_size=5).map(sorted))
def test_any_chunk_and_any_order_give_the_same(order, cuts):
    z, facts, _ = informed(n_cells=30)
    bridge = fit(z, facts, n_states=4)
    whole = bridge.apply(z, facts)
    for cells in np.split(np.array(order), cuts):
        assert_allclose(bridge.apply(z[cells], facts.of(cells)), whole[cells], atol=1e-9)


def test_alone_and_in_company_in_single_precision():
    z, facts, _ = informed()
    z = z.astype(np.float32)
    bridge = fit(z, facts)
    whole = bridge.apply(z, facts)
    assert whole.dtype == np.float32
    for i in range(0, len(z), 37):
        alone = bridge.apply(z[i : i + 1], facts.of(slice(i, i + 1)))
        assert_allclose(alone[0], whole[i], atol=1e-4)


def test_shares_sum_to_one_and_nothing_given_is_changed():
    z, facts, _ = informed()
    before = z.copy(), *(fact.copy() for fact in facts)
    bridge = fit(z, facts)
    share = bridge.states(z, facts)
    bridge.apply(z, facts)
    assert share.shape == (len(z), default_n_states(len(z)))
    assert (share >= 0).all()
    assert_allclose(share.sum(axis=1), 1)
    for given_before, now in zip(before, (z, *facts), strict=True):
        assert_array_equal(given_before, now)


def test_same_seed_same_bridge():
    z, facts, _, _ = embedding(effect=1.0)
    first, second = fit(z, facts, seed=4), fit(z, facts, seed=4)
    assert_array_equal(first.apply(z, facts), second.apply(z, facts))


# What is removed and what stays


@pytest.mark.parametrize("seed", range(4))
def test_random_halves_of_one_population_are_left_nearly_alone(seed):
    z, _, _, _ = embedding(seed, types=((0, 1, 2),), n_cells=800)
    facts = CellFacts(np.random.default_rng(seed).permutation(np.repeat([0, 1], 400)))
    moved = fit(z, facts).apply(z, facts)
    assert np.sqrt(np.mean((moved - z) ** 2)) < 0.03 * 0.5  # 0.5: spread within a type


def test_a_shift_of_its_own_in_each_state_is_removed():
    z, facts, kind, _ = embedding(effect=2.0)
    moved = fit(z, facts).apply(z, facts)
    for k in (0, 1):
        assert apart(z, facts, kind, k) > 1.5
        assert apart(moved, facts, kind, k) < 0.12 * apart(z, facts, kind, k)
    types = [moved[kind == k].mean(axis=0) for k in (0, 1)]
    assert np.linalg.norm(types[0] - types[1]) > 5  # and the types stay apart


def test_half_the_strength_leaves_about_half():
    z, facts, kind, _ = embedding(effect=2.0)
    moved = fit(z, facts, strength=0.5).apply(z, facts)
    for k in (0, 1):
        assert_allclose(apart(moved, facts, kind, k) / apart(z, facts, kind, k), 0.5, atol=0.1)
    assert_allclose(fit(z, facts, strength=0.0).apply(z, facts), z, atol=1e-12)


@pytest.mark.parametrize("reference", [0, 1])
def test_the_only_reference_stays_where_it_is(reference):
    z, facts, kind, _ = embedding(effect=2.0)
    there = facts.codes == reference
    moved = fit(z, facts, in_reference=np.arange(2) == reference).apply(z, facts)
    assert_allclose(moved[there], z[there], atol=1e-9)
    for k in (0, 1):
        assert apart(moved, facts, kind, k) < 0.12 * apart(z, facts, kind, k)


@pytest.mark.parametrize("reference", [None, [True, False], [False, True]])
def test_a_state_that_one_sample_alone_has_keeps_its_neighbors(reference):
    z, facts, kind, _ = embedding(types=((0, 1), (0, 1, 2)), effect=1.0)
    in_reference = None if reference is None else np.array(reference)
    moved = fit(z, facts, in_reference=in_reference).apply(z, facts)
    own = np.flatnonzero(kind == 2)
    assert kept_neighbors(z, moved, own) > 0.8
    assert (kind[neighbors(moved)[own]] == 2).mean() > 0.99
    centers = [moved[kind == k].mean(axis=0) for k in (0, 1, 2)]
    assert min(np.linalg.norm(centers[2] - other) for other in centers[:2]) > 5


@pytest.mark.parametrize("known", [True, False])
def test_a_long_shift_within_one_type_is_followed_if_the_type_is_known(known):
    z, facts, kind, _ = embedding(types=((0, 1, 2), (0, 1, 2)), n_cells=600)
    there = (facts.codes == 1) & (kind == 2)
    z = z + 0.1 * (facts.codes == 1)[:, None] + 0.7 * there[:, None]
    facts = facts._replace(labels=kind if known else None)
    bridge = fit(z, facts, 2, n_states=9)
    left = apart(bridge.apply(z, facts), facts, kind, 2) / apart(z, facts, kind, 2)
    assert left < 0.12 if known else left > 0.9
    assert (bridge.inlier_weight == 1).all() == known


# Few cells of a sample do not say much


@pytest.mark.parametrize("reference", [[1, 1, 1], [0, 1, 0]])
@pytest.mark.parametrize("effect", [0.5, 2.0])
def test_shifts_are_shrunk_together_as_defined(effect, reference):
    z, facts, _, _ = embedding(types=((0, 1), (0, 1), (1,)), n_cells=60, effect=effect)
    in_reference = np.array(reference, dtype=bool)
    bridge = fit(z, facts, 3, n_states=4, in_reference=in_reference)
    share = bridge.states(z, facts)
    count, mean, m2 = by_group(z, facts.codes, 3, share)
    effective = count**2 / by_group(z, facts.codes, 3, share**2)[0]
    expected, apart, usual, _ = slow_shifts.state_shifts(count, mean, m2, effective, in_reference)
    assert np.abs(expected).max() > 0.1
    assert_allclose(bridge.iterations[-1].shifts, expected, atol=1e-5)
    assert_allclose(bridge.sample_specific, apart, atol=1e-5)
    some = count > 0.01  # nothing is usual or not where a sample has no cell
    assert_allclose(bridge.inlier_weight[some], usual[some], atol=1e-5)


def test_an_effect_in_one_sample_leaves_the_others_alone():
    z, facts, _, _ = embedding(types=((0, 1),) * 4, n_cells=200)
    last = facts.codes == 3
    z[last] += np.random.default_rng(1).normal(0, 0.5, z.shape[1])
    bridge = fit(z, facts, 4, in_reference=np.arange(4) < 3)
    moved = np.linalg.norm(bridge.apply(z, facts) - z, axis=1)
    assert np.abs(moved[~last]).max() < 0.1
    assert moved[last].min() > 0.5


# Covariates


def slow_slopes(z, facts, share, unit, prior):
    """Return slopes by least squares with a level per sample; states x covariates x dims."""
    covariates, codes = facts.covariates / unit, facts.codes
    n_covariates = covariates.shape[1]
    levels = np.eye(codes.max() + 1)[codes]
    penalty = np.hstack([np.zeros((n_covariates, levels.shape[1])), prior * np.eye(n_covariates)])
    slopes = []
    for weight in np.sqrt(share.T):
        design = np.vstack([weight[:, None] * np.hstack([levels, covariates]), np.sqrt(penalty)])
        wanted = np.vstack([weight[:, None] * z, np.zeros((n_covariates, z.shape[1]))])
        slopes.append(np.linalg.lstsq(design, wanted)[0][-n_covariates:])
    return np.array(slopes)


@pytest.mark.parametrize("prior", [1e-3, 100.0])
def test_slopes_are_those_of_a_ridge_regression_with_a_level_per_sample(prior):
    z, facts, _ = informed()
    bridge = fit(z, facts, n_states=3, options=StateOptions(prior_slope=prior))
    share = bridge.states(z, facts)
    assert_allclose(bridge.unit, np.std(centered(facts.covariates, facts.codes), axis=0))
    expected = slow_slopes(z, facts, share, bridge.unit, prior)
    assert_allclose(bridge.iterations[-1].slopes, expected, atol=1e-6)


def centered(x, groups):
    """Subtract the mean of its group from each row."""
    return x - np.array([x[groups == g].mean(axis=0) for g in groups])


@pytest.mark.parametrize("seed", range(3))
def test_planted_slopes_are_found_and_removed_and_the_states_stay(seed):
    z, facts, kind, _ = embedding(seed, n_cells=600)
    rng = np.random.default_rng(seed)
    covariates = rng.normal(2, 3, (len(z), 2))
    planted = rng.normal(0, 0.1, (2, 2, z.shape[1]))  # types x covariates x dims
    z = z + np.einsum("nc,ncd->nd", covariates - 2, planted[kind])
    facts = facts._replace(covariates=covariates)
    bridge = fit(z, facts, n_states=2, options=StateOptions(prior_slope=1.0))
    moved, share = bridge.apply(z, facts), bridge.states(z, facts)
    state = [share[kind == k].mean(axis=0).argmax() for k in (0, 1)]
    assert_allclose(bridge.iterations[-1].slopes[state] / bridge.unit[:, None], planted, atol=0.03)
    for k in (0, 1):
        cells = kind == k
        assert_allclose(moved[cells].mean(axis=0), z[cells].mean(axis=0), atol=1e-3)
        left, before = (
            np.abs(np.corrcoef(np.hstack([covariates, y])[cells].T)[:2, 2:]) for y in (moved, z)
        )
        assert left.max() < 0.02 < 0.5 < before.max()


def test_a_covariate_that_tells_states_apart_does_not_pull_them_together():
    z, facts, kind, _ = embedding(n_cells=600)
    depth = 5.0 * kind + np.random.default_rng(0).normal(size=len(z))
    facts = facts._replace(covariates=depth[:, None])
    moved = fit(z, facts).apply(z, facts)
    assert between(moved, kind, 0, 1) == pytest.approx(between(z, kind, 0, 1), rel=1e-3)
    assert np.sqrt(np.mean((moved - z) ** 2)) < 0.01 * 0.5


def test_a_covariate_that_differs_between_samples_is_not_removed_twice():
    z, facts, kind, _ = embedding(effect=1.0, n_cells=600)
    rng = np.random.default_rng(0)
    depth = 3.0 * facts.codes + rng.normal(size=len(z))
    z = z + depth[:, None] * rng.normal(0, 0.3, z.shape[1])
    facts = facts._replace(covariates=depth[:, None])
    moved = fit(z, facts).apply(z, facts)
    for k in (0, 1):
        assert apart(moved, facts, kind, k) < 0.1 * apart(z, facts, kind, k)


def test_covariates_of_any_unit_give_the_same():
    z, facts, _ = informed()
    bent = facts._replace(covariates=facts.covariates * [1000, -0.01] + [5, 0])
    assert_allclose(fit(z, bent).apply(z, bent), fit(z, facts).apply(z, facts), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(value=st.floats(-1e5, 1e5), n_cells=st.integers(20, 60))
def test_a_constant_covariate_is_as_good_as_none(value, n_cells):
    z, facts, _ = informed(n_cells=n_cells)
    constant = np.full(len(z), value)
    with_it = facts._replace(covariates=np.column_stack([facts.covariates, constant]))
    moved = fit(z, with_it).apply(z, with_it)
    assert_allclose(moved, fit(z, facts).apply(z, facts), atol=1e-8)


@pytest.mark.parametrize("given", [None, 0, 1, 3])
def test_another_number_of_covariates_is_refused(given):
    z, facts, _ = informed(n_cells=50)
    bridge = fit(z, facts)
    wrong = facts._replace(covariates=None if given is None else np.zeros((len(z), given)))
    with pytest.raises(ValueError, match=f"Fitted with 2 covariates, received {given or 0}"):
        bridge.apply(z, wrong)


# Labels


def test_labeled_cells_join_no_state_of_another_label_and_others_go_anywhere():
    z, facts, _ = informed()
    # Some labels are wrong: expression alone would put these cells elsewhere.
    facts = facts._replace(labels=np.where(np.arange(len(z)) % 7 == 0, 0, facts.labels))
    bridge = fit(z, facts, n_states=12)
    share = bridge.states(z, facts)
    assert set(bridge.state_labels) == {0, 1}
    for label, other in ((0, 1), (1, 0)):
        assert (share[facts.labels == label][:, bridge.state_labels == other] == 0).all()
    unlabeled = share[facts.labels == -1]
    for label in (0, 1):
        assert unlabeled[:, bridge.state_labels == label].sum() > 1
    assert_allclose(share.sum(axis=1), 1)


def test_labels_that_were_not_there_count_as_none():
    z, facts, _ = informed(n_cells=100)
    facts = facts._replace(covariates=None)
    bridge = fit(z, facts)
    expected = bridge.apply(z, facts._replace(labels=None))
    for unknown in (-1, 2, 99):
        labels = np.full(len(z), unknown)
        assert_array_equal(bridge.apply(z, facts._replace(labels=labels)), expected)
    without = fit(z, facts._replace(labels=None))
    assert without.state_labels is None
    assert_array_equal(without.apply(z, facts), without.apply(z, facts._replace(labels=None)))


def test_no_known_label_is_as_good_as_none():
    z, facts, _, _ = embedding(effect=2.0)
    nothing = facts._replace(labels=np.full(len(z), -1))
    assert_array_equal(fit(z, nothing).apply(z, nothing), fit(z, facts).apply(z, facts))


def test_types_that_labels_alone_tell_from_a_batch_effect_are_not_merged():
    # Beside a type that both samples have, each has one of its own, near the other's.
    z, facts, kind, _ = embedding(n_cells=400)
    kind = np.where(kind == 1, 1 + facts.codes, 0)
    z[kind == 2, :3] += 1
    distance = between(z, kind, 1, 2)
    assert between(fit(z, facts).apply(z, facts), kind, 1, 2) < 0.3 * distance
    known = facts._replace(labels=kind)
    assert between(fit(z, known).apply(z, known), kind, 1, 2) == pytest.approx(distance, rel=1e-6)


def test_every_label_has_a_state_though_there_are_more_than_states():
    z, facts, _, _ = embedding(n_cells=60)
    labels = np.arange(len(z)) % 20
    bridge = fit(z, facts._replace(labels=labels), n_states=3)
    assert set(bridge.state_labels) == set(range(20))
    assert np.isfinite(bridge.apply(z, facts._replace(labels=labels))).all()


# Limits


def test_no_more_is_removed_than_the_limit_says():
    z, facts, _ = informed()
    bridge = fit(z, facts, strength=0.9)
    moved, everything = bridge.apply(z, facts), bridge.place(z, facts)
    assert_allclose(bridge.limited(lambda shifts: shifts).apply(z, facts), moved, atol=1e-12)

    nothing = bridge.limited(np.zeros_like)
    assert_array_equal(nothing.iterations[-1].shifts, nothing.retained)
    assert_array_equal(nothing.place(z, facts).corrected, everything.corrected)
    assert_array_equal(nothing.removed_shift(everything.share, facts.codes), np.zeros_like(z))

    little = bridge.limited(lambda shifts: shifts.clip(-0.2, 0.2))
    removed = everything.corrected + everything.retained - little.apply(z, facts)
    assert np.abs(removed).max() > 0.2  # so much does the limit spare somewhere
    assert np.abs(little.removed_shift(everything.share, facts.codes)).max() < 0.2 + 1e-9


def test_what_is_not_removed_stays():
    z, facts, _, _ = embedding(effect=2.0)
    for bridge in (fit(z, facts, strength=0.4), fit(z, facts).limited(np.tanh)):
        removed = bridge.removed_shift(bridge.states(z, facts), facts.codes)
        assert np.abs(removed).max() > 0.1
        assert_allclose(bridge.apply(z, facts), z - removed, atol=1e-12)


# Few cells, many samples, nothing to find


@pytest.mark.parametrize("reference", [None, 0, 1])
@pytest.mark.parametrize("few", [1, 2, 3])
def test_tiny_samples(few, reference):
    z, _, _, _ = embedding(n_cells=60)
    facts = CellFacts((np.arange(len(z)) < few).astype(int))
    in_reference = None if reference is None else np.arange(2) == reference
    bridge = fit(z, facts, in_reference=in_reference)
    moved = bridge.apply(z, facts)
    assert np.isfinite(moved).all()
    assert_allclose(bridge.states(z, facts).sum(axis=1), 1)
    assert np.abs(moved - z).max() < np.abs(z).max()


@pytest.mark.parametrize("n_cells", [1, 2, 3])
def test_tiny_data(n_cells):
    z, facts = np.random.default_rng(0).normal(size=(n_cells, 4)), CellFacts(np.arange(n_cells))
    assert np.isfinite(fit(z, facts, n_cells, n_states=50).apply(z, facts)).all()


def test_a_thousand_samples():
    rng = np.random.default_rng(0)
    z, facts = rng.normal(size=(2500, 5)), CellFacts(rng.integers(0, 1000, 2500))
    bridge = fit(z, facts, 1000, n_states=10, options=StateOptions(iterations=2))
    assert bridge.iterations[0].shifts.shape == (1000, 10, 5)
    assert np.isfinite(bridge.apply(z, facts)).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_identical_cells(value):
    z, facts = np.full((60, 4), value), CellFacts(np.arange(60) % 2)
    bridge = fit(z, facts, n_states=5)
    assert_allclose(bridge.apply(z, facts), z)
    assert_allclose(bridge.states(z, facts).sum(axis=1), 1)


def test_cells_at_the_origin_have_no_direction_and_stay_finite():
    z, facts, _, _ = embedding(effect=1.0)
    z[::10] = 0
    bridge = fit(z, facts)
    assert np.isfinite(bridge.apply(z, facts)).all()
    assert_allclose(bridge.states(z, facts).sum(axis=1), 1)


def test_default_number_of_states():
    assert [default_n_states(n) for n in (0, 1, 30, 90, 3000, 10**6)] == [1, 1, 1, 3, 100, 100]


@pytest.mark.parametrize(
    ("n_cells", "iterations", "message"), [(0, 10, "0 cells"), (5, 0, "0 iterations")]
)
def test_nothing_to_fit(n_cells, iterations, message):
    facts = CellFacts(np.zeros(n_cells, dtype=int))
    with pytest.raises(ValueError, match=message):
        fit(np.ones((n_cells, 3)), facts, options=StateOptions(iterations=iterations))


def test_queries_are_placed_by_the_options_of_the_fit():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 0.3, (120, 3)) + 3 * np.eye(3)[np.arange(120) // 60]
    facts = CellFacts(np.arange(120) % 2)
    bridge = fit(z, facts, n_states=2, options=StateOptions(prior_shift=50.0))
    one = np.zeros(len(z), dtype=int)
    reference = Moments.by_group(z, one, 1, bridge.states(z, facts))[0]
    trusting = replace(bridge, options=StateOptions(prior_shift=0.0))
    shifts = [
        of.without_samples(np.arange(2)).place_query(z[:40] + 0.5, None, reference).shifts
        for of in (bridge, trusting)
    ]
    assert np.abs(shifts[0]).max() < 0.7 * np.abs(shifts[1]).max()
