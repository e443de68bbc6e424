from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from bioren import AffineBridge, Moments
from bioren.arrays.components import Projection
from bioren.effects.alignment import Alignment, Removal, compare
from bioren.effects.constants import MIN_OVERLAP
from bioren.effects.standardization import standardize_onto
from bioren.effects.state_profile import StateProfile
from bioren.effects.states import frozen_states
from bioren.reference.mapping import Frame, map_sample, stack

seeds = st.integers(0, 2**32 - 1)

N_GENES, N_STATES = 8, 3
LEVEL = np.random.default_rng(0).normal(0, 3, (N_STATES, N_GENES))
WITHIN = np.random.default_rng(1).uniform(0.3, 1.5, (N_STATES, N_GENES))


def profile_of(counts, level=LEVEL, variance=WITHIN**2):
    """Return the reference with exactly these means and variances."""
    counts = np.asarray(counts, dtype=float)
    composition = counts / counts.sum()
    return StateProfile(composition, Moments(counts, level, variance * counts[:, None]))


def sample_of(counts, shift=0.0, scale=1.0, level=LEVEL, variance=WITHIN**2):
    """Return the moments of a sample that differs from the reference by exactly this much."""
    counts = np.asarray(counts, dtype=float)
    there = (counts > 0)[:, None]
    m2 = variance * counts[:, None] * np.square(scale)
    return Moments(counts, (level + shift) * there, m2 * there)[None]


def slow_onto(by_state, strata, prior=10.0):
    """Return shifts, ratios of the variance, standard errors and overlap, by loops."""
    n_samples, n_states, n_genes = by_state.mean.shape
    shift, error = np.zeros((2, n_samples, n_genes))
    ratio = np.ones((n_samples, n_genes))
    overlap = np.zeros(n_samples)
    known = strata.by_state
    for s in range(n_samples):
        cells = sum(by_state.count[s])
        weights = []
        for k in range(n_states):
            n, there = by_state.count[s, k], known.count[k]
            overlap[s] += n / cells * there / (there + prior)
            weights.append(strata.composition[k] * n / (n + prior) * there / (there + prior))
        if sum(weights) == 0:
            continue
        for g in range(n_genes):
            expected = observed = 0.0
            for k in range(n_states):
                part = weights[k] / sum(weights)
                if part == 0:
                    continue
                n, there = by_state.count[s, k], known.count[k]
                variance = known.m2[k, g] / there
                shift[s, g] += part * (by_state.mean[s, k, g] - known.mean[k, g])
                expected += part * variance
                observed += part * by_state.m2[s, k, g] / n
                error[s, g] += part**2 * variance * (1 / n + 1 / there)
            if expected > 0 and observed > 0:
                drawn = (cells * observed + prior * expected) / (cells + prior)
                ratio[s, g] = drawn / expected
    apart = overlap < MIN_OVERLAP
    shift[apart], ratio[apart] = 0, 1
    return shift, ratio, np.sqrt(error), overlap


def found_by(by_state, strata):
    result = standardize_onto(by_state, strata)
    shift = result.samples.mean - result.reference.mean
    ratio = result.samples.var() / np.where(result.reference.var() > 0, result.reference.var(), 1)
    return shift, ratio, result.standard_error, result.overlap


# Comparing with a reference that stays as it is


@settings(max_examples=60, deadline=None)
@given(seed=seeds, n_samples=st.integers(1, 3), empty=st.floats(0, 0.8))
def test_comparison_agrees_with_slow_loops(seed, n_samples, empty):
    rng = np.random.default_rng(seed)
    known = rng.integers(1, 100, N_STATES) * (rng.random(N_STATES) > empty)
    known[rng.integers(N_STATES)] += 1
    count = rng.uniform(0.1, 100, (n_samples, N_STATES)) * (
        rng.random((n_samples, N_STATES)) > empty
    )
    count[np.arange(n_samples), rng.integers(N_STATES, size=n_samples)] += 1
    shape = n_samples, N_STATES, N_GENES
    there = (count > 0)[..., None]
    m2 = rng.uniform(0, 9, shape) * (rng.random(N_GENES) > 0.2)  # some genes are constant
    by_state = Moments(count, rng.normal(size=shape) * there, m2 * there)
    strata = profile_of(known, LEVEL * (known > 0)[:, None])
    for found, expected in zip(
        found_by(by_state, strata), slow_onto(by_state, strata), strict=True
    ):
        assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_samples_have_no_influence_on_one_another(seed):
    rng = np.random.default_rng(seed)
    strata = profile_of([50, 20, 30])
    parts = [sample_of(rng.integers(1, 90, 3), rng.normal(size=N_GENES), 1.2) for _ in range(3)]
    together = found_by(Moments.stacked(parts), strata)
    for i, part in enumerate(parts):
        for whole, alone in zip(together, found_by(part, strata), strict=True):
            assert_allclose(whole[i], alone[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("counts", [[90, 5, 5], [1, 1, 1], [300, 0, 10]])
def test_the_reference_itself_has_no_effect(counts):
    shift, ratio, _, overlap = found_by(sample_of(counts), profile_of(counts))
    assert_allclose(shift, 0, atol=1e-12)
    assert_allclose(ratio, 1, rtol=1e-12)
    assert (overlap > MIN_OVERLAP).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    query=st.lists(st.integers(0, 500), min_size=3, max_size=3).filter(any),
    reference=st.lists(st.integers(20, 500), min_size=3, max_size=3),
)
def test_a_shift_is_recovered_exactly_whatever_the_composition(seed, query, reference):
    shift = np.random.default_rng(seed).normal(size=N_GENES)
    found, ratio, _, _ = found_by(sample_of(query, shift), profile_of(reference))
    assert_allclose(found[0], shift, atol=1e-9)
    assert_allclose(ratio, 1, atol=1e-9)


@pytest.mark.parametrize("query", [[9000, 1000, 0], [100, 9900, 0], [10_000, 0, 0]])
def test_a_scale_is_recovered_whatever_the_composition(query):
    scale = np.linspace(0.6, 1.8, N_GENES)
    _, ratio, _, _ = found_by(sample_of(query, 1.0, scale), profile_of([1000, 9000, 10]))
    assert_allclose(np.sqrt(ratio[0]), scale, rtol=2e-3)


def test_one_cell_tells_nothing_of_the_scale():
    one = Moments(np.array([[1.0, 0, 0]]), LEVEL[None] * [[[1], [0], [0]]], np.zeros((1, 3, 8)))
    shift, ratio, error, overlap = found_by(one, profile_of([50, 50, 50]))
    assert_allclose(shift, 0, atol=1e-12)
    assert_array_equal(ratio, 1)
    assert_allclose(error[0], WITHIN[0] * np.sqrt(1 + 1 / 50))
    assert_allclose(overlap, 50 / 60)


def test_a_sample_apart_counts_as_having_no_effect():
    shift, ratio, _, overlap = found_by(sample_of([0, 0, 90], 5.0, 2.0), profile_of([90, 90, 0]))
    assert_array_equal((shift == 0) & (ratio == 1), True)
    assert overlap[0] < MIN_OVERLAP


def test_more_cells_are_more_certain():
    strata = profile_of([100, 100, 100])
    errors = [found_by(sample_of([n, n, n]), strata)[2] for n in (1, 10, 100, 1000)]
    assert all((few > many).all() for few, many in pairwise(errors))


# A whole sample in gene space

LOADINGS = np.linalg.qr((LEVEL - LEVEL.mean(axis=0)).T)[0][:, :2]


def frame_of(counts=(300, 300, 300)):
    strata = profile_of(counts)
    center = strata.whole().mean
    level = strata.by_state
    z = Moments(level.count, (level.mean - center) @ LOADINGS, level.m2 @ LOADINGS**2)
    return Frame(strata, frozen_states(z.mean), z, z), Projection(center, LOADINGS)


def cells_of(counts, shift=0.0, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    state = rng.permutation(np.repeat(np.arange(3), counts))
    x = LEVEL[state] + WITHIN[state] * rng.normal(size=(len(state), N_GENES))
    center = LEVEL.mean(axis=0)
    return center + scale * (x - center) + shift, state


def mapped(x, frame_and_projection=None, removal=Removal()):  # noqa: B008
    frame, projection = frame_and_projection or frame_of()
    one = np.zeros(x.shape[0], dtype=int)
    return map_sample(
        x,
        None,
        frame,
        encode=lambda bridge: projection.apply(x, one, bridge),
        variable=(x, np.arange(N_GENES)),
        removal=removal,
    )


@pytest.mark.parametrize("counts", [(300, 300, 300), (540, 30, 30), (0, 300, 300)])
def test_a_planted_effect_is_undone(counts):
    shift = np.random.default_rng(5).normal(0, 0.7, N_GENES)
    scale = np.exp(np.random.default_rng(6).normal(0, 0.15, N_GENES))
    x, state = cells_of(counts, shift, scale)
    found = mapped(x)
    assert (found.placed.share.argmax(axis=1) == state).mean() > 0.97
    carried = found.alignment.full[0].apply(x)
    for k in np.unique(state):
        left = carried[state == k].mean(axis=0) - LEVEL[k]
        assert np.abs(left / WITHIN[k]).mean() < 0.35
        before = np.abs((x[state == k].mean(axis=0) - LEVEL[k]) / WITHIN[k])
        assert np.abs(left / WITHIN[k]).mean() < 0.5 * before.mean()
    assert found.alignment.overlap[0] > 0.9


def test_no_effect_is_found_where_there_is_none():
    x, _ = cells_of((200, 300, 100))
    found = mapped(x).alignment
    assert np.abs(found.d * found.removed).max() < 0.1


def test_strength_limits_what_is_removed_but_not_where_states_are_sought():
    x, _ = cells_of((100, 100, 100), np.linspace(-1, 1, N_GENES))
    everything = mapped(x)
    nothing = mapped(x, removal=Removal(strength=0.0))
    assert_allclose(nothing.alignment.bridges.apply(x), x, atol=1e-9)
    assert_array_equal(nothing.placed.share, everything.placed.share)
    assert_array_equal(nothing.alignment.full.shift, everything.alignment.full.shift)


def test_a_sparse_sample_is_mapped_as_a_dense_one():
    x, _ = cells_of((50, 50, 50))
    x = np.where(x > 0.5, x, 0)
    found, expected = mapped(sparse.csr_matrix(x)), mapped(x)
    assert_allclose(found.bridged, expected.bridged, atol=1e-4)
    assert_allclose(found.alignment.d, expected.alignment.d, atol=1e-5)


def test_a_single_cell_stays_as_it_is():
    x, state = cells_of((0, 1, 0))
    found = mapped(x)
    assert found.placed.share.argmax() == state[0]
    assert np.isfinite(found.alignment.full.apply(x)).all()
    assert_allclose(found.alignment.full.scale, 1)


def test_stacked_alignments_are_those_of_the_samples_together():
    rng = np.random.default_rng(0)
    strata = profile_of([50, 20, 30])
    parts = [sample_of(rng.integers(9, 90, 3), rng.normal(size=N_GENES), 1.2) for _ in range(3)]
    one_by_one = stack([compare(standardize_onto(part, strata), Removal()) for part in parts])
    together = compare(standardize_onto(Moments.stacked(parts), strata), Removal())
    for name in Alignment._fields:
        found, expected = getattr(one_by_one, name), getattr(together, name)
        for of in {Moments: ("count", "mean", "m2"), AffineBridge: ("scale", "shift")}.get(
            type(expected), ()
        ):
            assert_allclose(getattr(found, of), getattr(expected, of), rtol=1e-10, atol=1e-10)
        if isinstance(expected, np.ndarray):
            assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
