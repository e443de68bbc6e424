import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist

from bioren.states import ConditionalBridge, StateOptions, default_n_states


def embedding(seed=0, *, types=((0, 1), (0, 1)), n_cells=300, n_dims=10, effect=0.0):
    """Cells of a few types around their centers; each sample shifts each type at random.

    Returns z, codes, types of the cells, and the planted shifts (samples x types x dims).
    """
    rng = np.random.default_rng(seed)
    n_types = 1 + max(max(some) for some in types)
    centers = 5 * np.linalg.qr(rng.normal(size=(n_dims, n_dims)))[0][:n_types]
    codes = np.repeat(np.arange(len(types)), n_cells)
    kind = np.concatenate([rng.choice(some, n_cells) for some in types])
    shifts = effect * rng.normal(size=(len(types), n_types, n_dims)) / np.sqrt(n_dims)
    z = centers[kind] + shifts[codes, kind] + rng.normal(0, 0.5, (len(kind), n_dims))
    return z, codes, kind, shifts


def fit(z, codes, n_samples=2, *, seed=0, **options):
    return ConditionalBridge.fit(z, codes, n_samples, rng=np.random.default_rng(seed), **options)


def neighbours(z, k=15):
    return np.argsort(cdist(z, z) + 1e9 * np.eye(len(z)), axis=1)[:, :k]


def kept_neighbours(before, after, cells=slice(None)):
    old, new = neighbours(before)[cells], neighbours(after)[cells]
    return np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(old, new, strict=True)])


def apart(z, codes, kind, k):
    """Distance between the two samples' centers of a type."""
    a, b = (z[(codes == s) & (kind == k)].mean(axis=0) for s in (0, 1))
    return np.linalg.norm(a - b)


def oracle(bridge, cell, sample):
    """Return moved cell and its shares, one cell at a time, by the formulas of Korsunsky 2019."""
    moved = cell
    for centers, log_odds, shifts in bridge.rounds:
        cosine = centers @ moved / np.linalg.norm(moved)
        weight = np.exp(-2 * (1 - cosine) / bridge.width) * np.exp(log_odds[sample])
        share = weight / weight.sum()
        moved = cell - sum(p * shift for p, shift in zip(share, shifts[sample], strict=True))
    return moved, share


# The fitted bridge is a pure function of a cell and its sample


def test_each_cell_by_the_formulas():
    z, codes, _, _ = embedding(effect=2.0, n_cells=100)
    bridge = fit(z, codes)
    moved, share = bridge.apply(z, codes), bridge.states(z, codes)
    for i in range(0, len(z), 17):
        wanted, wanted_share = oracle(bridge, z[i], codes[i])
        assert_allclose(moved[i], wanted, rtol=1e-7, atol=1e-9)
        assert_allclose(share[i], wanted_share, rtol=1e-6, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(60)), cuts=st.lists(st.integers(0, 60), max_size=5).map(sorted))
def test_any_chunk_and_any_order_give_the_same(order, cuts):
    z, codes, _, _ = embedding(effect=2.0, n_cells=30)
    bridge = fit(z, codes, n_states=4)
    whole = bridge.apply(z, codes)
    for cells in np.split(np.array(order), cuts):
        assert_allclose(bridge.apply(z[cells], codes[cells]), whole[cells], atol=1e-9)


def test_alone_and_in_company_in_single_precision():
    z, codes, _, _ = embedding(effect=2.0)
    z = z.astype(np.float32)
    bridge = fit(z, codes)
    whole = bridge.apply(z, codes)
    assert whole.dtype == np.float32
    for i in range(0, len(z), 37):
        alone = bridge.apply(z[i : i + 1], codes[i : i + 1])
        assert_allclose(alone[0], whole[i], atol=1e-4)


def test_shares_sum_to_one_and_nothing_given_is_changed():
    z, codes, _, _ = embedding(effect=1.0)
    before = z.copy(), codes.copy()
    bridge = fit(z, codes)
    share = bridge.states(z, codes)
    bridge.apply(z, codes)
    assert share.shape == (len(z), default_n_states(len(z)))
    assert (share >= 0).all()
    assert_allclose(share.sum(axis=1), 1)
    assert_array_equal(z, before[0])
    assert_array_equal(codes, before[1])


def test_same_seed_same_bridge():
    z, codes, _, _ = embedding(effect=1.0)
    first, second = fit(z, codes, seed=4), fit(z, codes, seed=4)
    assert_array_equal(first.apply(z, codes), second.apply(z, codes))


# What is removed and what stays


def test_random_halves_of_one_population_are_left_nearly_alone():
    z, _, _, _ = embedding(types=((0, 1, 2),), n_cells=800)
    codes = np.random.default_rng(1).permutation(np.repeat([0, 1], 400))
    moved = fit(z, codes).apply(z, codes)
    assert np.sqrt(np.mean((moved - z) ** 2)) < 0.05 * 0.5  # 0.5: spread within a type
    assert kept_neighbours(z, moved) > 0.95


def test_a_shift_of_its_own_in_each_state_is_removed():
    z, codes, kind, _ = embedding(effect=2.0)
    moved = fit(z, codes).apply(z, codes)
    for k in (0, 1):
        assert apart(z, codes, kind, k) > 1.5
        assert apart(moved, codes, kind, k) < 0.15 * apart(z, codes, kind, k)
    types = [moved[kind == k].mean(axis=0) for k in (0, 1)]
    assert np.linalg.norm(types[0] - types[1]) > 5  # and the types stay apart


def test_half_the_strength_leaves_about_half():
    z, codes, kind, _ = embedding(effect=2.0)
    moved = fit(z, codes, strength=0.5).apply(z, codes)
    for k in (0, 1):
        assert_allclose(apart(moved, codes, kind, k) / apart(z, codes, kind, k), 0.5, atol=0.1)
    assert_array_equal(fit(z, codes, strength=0.0).apply(z, codes), z)


@pytest.mark.parametrize("reference", [0, 1])
def test_the_only_reference_stays_where_it_is(reference):
    z, codes, kind, _ = embedding(effect=2.0)
    there = codes == reference
    moved = fit(z, codes, in_reference=np.arange(2) == reference).apply(z, codes)
    assert_allclose(moved[there], z[there], atol=1e-9)
    for k in (0, 1):
        assert apart(moved, codes, kind, k) < 0.15 * apart(z, codes, kind, k)


@pytest.mark.parametrize("reference", [None, [True, False], [False, True]])
def test_a_state_that_one_sample_alone_has_keeps_its_neighbours(reference):
    z, codes, kind, _ = embedding(types=((0, 1), (0, 1, 2)), effect=1.0)
    in_reference = None if reference is None else np.array(reference)
    moved = fit(z, codes, in_reference=in_reference).apply(z, codes)
    own = np.flatnonzero(kind == 2)
    assert kept_neighbours(z, moved, own) > 0.8
    assert (kind[neighbours(moved)[own]] == 2).mean() > 0.99
    centers = [moved[kind == k].mean(axis=0) for k in (0, 1, 2)]
    assert min(np.linalg.norm(centers[2] - other) for other in centers[:2]) > 5


# Few cells, many samples, nothing to find


@pytest.mark.parametrize("reference", [None, 0, 1])
@pytest.mark.parametrize("few", [1, 2, 3])
def test_tiny_samples(few, reference):
    z, _, _, _ = embedding(n_cells=60)
    codes = (np.arange(len(z)) < few).astype(int)
    in_reference = None if reference is None else np.arange(2) == reference
    bridge = fit(z, codes, in_reference=in_reference)
    moved = bridge.apply(z, codes)
    assert np.isfinite(moved).all()
    assert_allclose(bridge.states(z, codes).sum(axis=1), 1)
    assert np.abs(moved - z).max() < np.abs(z).max()


@pytest.mark.parametrize("n_cells", [1, 2, 3])
def test_tiny_data(n_cells):
    z, codes = np.random.default_rng(0).normal(size=(n_cells, 4)), np.arange(n_cells)
    assert np.isfinite(fit(z, codes, n_cells, n_states=50).apply(z, codes)).all()


def test_a_thousand_samples():
    rng = np.random.default_rng(0)
    z, codes = rng.normal(size=(2500, 5)), rng.integers(0, 1000, 2500)
    bridge = fit(z, codes, 1000, n_states=10, options=StateOptions(rounds=2))
    assert bridge.rounds[0].shifts.shape == (1000, 10, 5)
    assert np.isfinite(bridge.apply(z, codes)).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_identical_cells(value):
    z, codes = np.full((60, 4), value), np.arange(60) % 2
    bridge = fit(z, codes, n_states=5)
    assert_allclose(bridge.apply(z, codes), z)
    assert_allclose(bridge.states(z, codes).sum(axis=1), 1)


def test_cells_at_the_origin_have_no_direction_and_stay_finite():
    z, codes, _, _ = embedding(effect=1.0)
    z[::10] = 0
    bridge = fit(z, codes)
    assert np.isfinite(bridge.apply(z, codes)).all()
    assert_allclose(bridge.states(z, codes).sum(axis=1), 1)


def test_default_number_of_states():
    assert [default_n_states(n) for n in (0, 1, 30, 90, 3000, 10**6)] == [1, 1, 1, 3, 100, 100]


@pytest.mark.parametrize(("n_cells", "rounds", "message"), [(0, 10, "0 cells"), (5, 0, "0 rounds")])
def test_nothing_to_fit(n_cells, rounds, message):
    with pytest.raises(ValueError, match=message):
        fit(
            np.ones((n_cells, 3)), np.zeros(n_cells, dtype=int), options=StateOptions(rounds=rounds)
        )
