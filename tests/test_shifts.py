"""What is removed within states, and what stands apart: it is left alone, and moves no one else."""

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import slow_shifts
from anndata import concat
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from reference import N_GENES, draw, effect, fitted
from slow_moments import by_group

from bioren import Moments
from bioren.effects.shifts import shifts_onto, state_shifts
from bioren.files.container import read

seeds = st.integers(0, 2**32 - 1)
laws = settings(max_examples=60, deadline=None)


def tables(count, mean, sd=1.0):
    """Return moments of so many cells of these means and spreads; no cells have the mean 0."""
    mean = mean * (count > 0)[..., None]
    return Moments(count, mean, count[..., None] * np.square(sd) * np.ones_like(mean))


def shifts_of(count, mean, sd=1.0, in_reference=None):
    there = np.ones(len(count), dtype=bool) if in_reference is None else np.array(in_reference)
    return state_shifts(tables(count, mean, sd), count, there, 1.0)


def lengths(shifts):
    return np.linalg.norm(shifts, axis=-1)


class World:
    """Samples with one offset each in all states, but for a little; states have their own spread.

    A sample is `apart` in the state `where`, far longer than its offset.  No state holds half of a
    sample's cells, as what most of them differ by is usual, and offsets are at right angles, so
    that they are much alike whoever is in the mean.
    """

    def __init__(self, seed, n_samples, n_states, n_dims):
        rng = np.random.default_rng(seed)
        self.count = rng.integers(100, 180, (n_samples, n_states)).astype(float)
        self.sd = rng.uniform(0.4, 2, (n_states, 1))
        self.level = rng.normal(0, 5, (n_states, n_dims))
        angles = np.sqrt(n_dims) * np.linalg.qr(rng.normal(size=(n_dims, n_dims)))[0]
        self.offset, self.far = angles[:n_samples, None], 20 * angles[n_samples]
        little = rng.normal(0, 0.03, (n_samples, n_states, n_dims))
        self.mean = self.level + self.offset + little
        self.specific, self.where = rng.integers(n_samples), rng.integers(n_states)
        self.others = np.arange(n_samples) != self.specific

    def shifts(self):
        """Return the shifts where the sample stands apart, and those without its cells there."""
        mean, count = self.mean.copy(), self.count.copy()
        mean[self.specific, self.where] += self.far
        found = shifts_of(count, mean, self.sd)
        count[self.specific, self.where] = 0
        return found, shifts_of(count, mean, self.sd)


worlds = st.builds(World, seeds, st.integers(3, 6), st.integers(3, 8), st.integers(8, 12))


@st.composite
def any_tables(draw):
    """Draw counts, means and spreads of all sizes, and a reference; cells are missing or few."""
    rng = np.random.default_rng(draw(seeds))
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5)))
    count = np.exp(rng.uniform(-3, 6, shape[:2])) * (rng.random(shape[:2]) > 0.2)
    count[:, rng.integers(shape[1])] += 1  # no sample and no state is empty
    count[rng.integers(shape[0])] += 1
    size = np.exp(rng.uniform(-4, 3, (*shape[:2], 1)) + rng.uniform(-2, 1, (shape[0], 1, 1)))
    mean = rng.normal(size=shape) * size
    sd = np.exp(rng.normal(0, 0.7, shape[1:]))
    in_reference = rng.random(shape[0]) < draw(st.sampled_from([0.5, 1.0]))
    in_reference[rng.integers(shape[0])] = True
    return count, mean, sd, in_reference


# All together, by definition


@settings(max_examples=150, deadline=None)
@given(any_tables())
def test_shifts_agree_with_slow_loops(given):
    count, mean, sd, in_reference = given
    some = tables(count, mean, sd)
    found = shifts_of(count, mean, sd, in_reference)
    slow = slow_shifts.state_shifts(count, some.mean, some.m2, count, in_reference)
    for ours, expected in zip(found, slow[:3], strict=True):
        assert_allclose(ours[count > 0], expected[count > 0], rtol=1e-6, atol=1e-9)
        assert np.isfinite(ours).all()


@settings(max_examples=40, deadline=None)
@given(any_tables(), seeds)
def test_shifts_onto_a_reference_agree_with_slow_loops(given, seed):
    count, mean, sd, _ = given
    reference = tables(np.round(count[0]), mean[0], sd)
    z, share = cells_of(1 + np.round(count[-1]), mean[-1], sd, seed)
    share = 0.8 * share + 0.2 / share.shape[1]  # a cell is of several states
    one = np.zeros(len(z), dtype=int)
    n, level, _ = (of[0] for of in by_group(z, one, 1, share))
    effective = n**2 / by_group(z, one, 1, share**2)[0][0]
    known = reference.count, reference.mean, reference.m2
    expected = slow_shifts.shifts_onto(n, level, effective, known)
    for ours, wanted in zip(shifts_onto(z, share, reference, 1.0), expected[:3], strict=True):
        assert_allclose(ours, wanted, rtol=1e-6, atol=1e-9)


# A sample apart in one state


@laws
@given(worlds)
def test_a_sample_apart_stays_and_moves_no_other(world):
    found, without = world.shifts()
    sample, state, others = world.specific, world.where, world.others
    assert found.inlier_weight[sample, state] < 1e-6
    assert lengths(found.batch_effect[sample, state]) < 0.01
    # It lies as far from the others' middle as it was put, but for its batch effect.
    weight = world.count[others, state] / (world.count[others, state] + 1)
    middle = np.average(world.mean[others, state], axis=0, weights=weight)
    away = world.mean[sample, state] + world.far - middle
    certain = world.count[sample, state] / (world.count[sample, state] + 10)
    assert_allclose(found.sample_specific[sample, state], certain * away, atol=0.05)

    assert_allclose(found.batch_effect[others], without.batch_effect[others], atol=0.02)
    assert_allclose(found.inlier_weight[others], without.inlier_weight[others], atol=0.02)
    left = world.mean - found.batch_effect, world.mean - without.batch_effect
    gaps, expected = (of[others, state] - of[others, state][:1] for of in left)
    assert_allclose(gaps, expected, atol=0.02)


@laws
@given(worlds)
def test_what_stands_apart_says_nothing_of_the_samples_batch_effect(world):
    found, without = world.shifts()
    elsewhere = np.arange(len(world.level)) != world.where
    kept, expected = (of.batch_effect[world.specific, elsewhere] for of in (found, without))
    assert_allclose(kept, expected, atol=0.02)


@laws
@given(st.builds(World, seeds, st.integers(5, 7), st.integers(3, 8), st.integers(8, 12)))
def test_a_sample_apart_moves_no_other_though_a_batch_effect_is_longer(world):
    # The farthest sample of a state need not be the unusual one.
    world.sd[:] = 1
    longer = (world.specific + 1) % len(world.count)
    world.mean[longer] += 30 * world.offset[longer]
    found, without = world.shifts()
    assert_allclose(found.batch_effect[world.others], without.batch_effect[world.others], atol=0.1)


@laws
@given(seeds, st.integers(5, 9) | st.integers(20, 30))
def test_several_samples_apart_move_no_other_while_they_are_the_fewer(seed, n_samples):
    world = World(seed, n_samples, 4, max(10, n_samples + 2))
    away = np.arange(n_samples) < (n_samples - 1) // 2
    mean, count = world.mean.copy(), world.count.copy()
    mean[away, world.where] += world.far
    found = shifts_of(count, mean, world.sd)
    count[away, world.where] = 0
    expected = shifts_of(count, mean, world.sd)
    assert found.inlier_weight[away, world.where].max() < 0.01
    assert_allclose(found.batch_effect[~away], expected.batch_effect[~away], atol=0.05)


@laws
@given(seeds, st.integers(20, 400), st.booleans())
def test_of_two_samples_neither_is_the_unusual_one(seed, n_cells, with_others):
    # Two alone, or two that share a state which others lack.
    world = World(seed, 4 if with_others else 2, 5, 8)
    world.count[:2, 0] = n_cells
    world.count[2:, 0] = 0
    world.mean[0, 0] += world.far
    found = shifts_of(world.count, world.mean, world.sd)
    assert found.inlier_weight[:2, 0].max() < 1e-3
    assert lengths(found.batch_effect[:2, 0]).max() < 0.01
    # Both lie equally far from the middle: neither is left out of the mean.
    half = (world.mean[0, 0] - world.mean[1, 0]) / 2 * n_cells / (n_cells + 10)
    assert_allclose(found.sample_specific[:2, 0], [half, -half], atol=0.01)


# Batch effects of every kind are no cell types


@laws
@given(seeds, st.integers(2, 6), st.integers(2, 8), st.booleans())
def test_one_offset_in_all_states_or_one_that_grows_with_the_spread_is_usual(
    seed, n_samples, n_states, grows
):
    rng = np.random.default_rng(seed)
    count = rng.integers(20, 400, (n_samples, n_states)).astype(float)
    sd = rng.uniform(0.4, 2, n_states)
    sd[:2] = 0.4, 2
    offset = rng.normal(size=(n_samples, 1, 6)) * (sd[:, None] if grows else 1)
    mean = rng.normal(0, 5, (n_states, 6)) + offset
    found = shifts_of(count, mean, sd[:, None])
    assert_array_equal(found.inlier_weight, 1)
    assert_array_equal(found.sample_specific, 0)
    assert lengths(found.batch_effect).max() > 0.1


@laws
@given(seeds, st.integers(1, 4))
def test_what_does_not_differ_is_usual(seed, n_samples):
    # As in the only sample of a reference, and where one sample alone has a state.
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 400, (n_samples, 4)).astype(float)
    only = np.arange(n_samples) == 0
    found = shifts_of(count, rng.normal(size=(n_samples, 4, 3)), in_reference=only)
    count[1:, 0] = 0
    alone = shifts_of(count, rng.normal(size=(n_samples, 4, 3)))
    for shifts, states in ((found, slice(None)), (alone, 0)):
        assert_array_equal(shifts.batch_effect[0, states], 0)
        assert_array_equal(shifts.sample_specific[0, states], 0)
        assert_array_equal(shifts.inlier_weight[0, states], 1)


@laws
@given(any_tables())
def test_nothing_is_unusual_where_the_sample_or_the_reference_has_no_cell(given):
    count, mean, sd, in_reference = given
    usual = shifts_of(count, mean, sd, in_reference).inlier_weight
    nothing = (count == 0) | (count[in_reference].sum(axis=0) == 0)
    assert_array_equal(usual[nothing], 1)


@laws
@given(worlds)
def test_where_states_are_known_to_be_of_one_type_all_shifts_are_followed(world):
    mean = world.mean.copy()
    mean[world.specific, world.where] += world.far
    everything = np.ones(len(mean), dtype=bool)
    some = tables(world.count, mean, world.sd)
    found = state_shifts(some, world.count, everything, 1.0, of_one_type=True)
    assert_array_equal(found.inlier_weight, 1)
    assert_array_equal(found.sample_specific, 0)
    left = (mean - found.batch_effect)[:, world.where]
    assert lengths(left - left.mean(axis=0)).max() < 0.1 * lengths(world.far)


# Bounds


@settings(max_examples=100, deadline=None)
@given(any_tables())
def test_no_more_than_the_shift_is_removed_or_apart(given):
    count, mean, sd, in_reference = given
    only = np.flatnonzero(in_reference)[0]
    level = tables(count, mean, sd).mean
    found = shifts_of(count, mean, sd, np.arange(len(count)) == only)
    assert_within(found, level - level[only])


def assert_within(found, shift):
    """Both parts lie on the way of the shift, one after the other, and usual says how far."""
    removed, apart, usual = found
    assert ((usual >= 0) & (usual <= 1)).all()
    whole = lengths(shift)
    for part, most in ((removed, usual), (apart, 1 - usual), (removed + apart, 1)):
        assert (lengths(part) <= most * whole + 1e-9).all()
        along = np.einsum("...d,...d", part, shift)
        assert_allclose(along, lengths(part) * whole, rtol=1e-6, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(any_tables())
def test_what_is_removed_and_what_is_apart_lie_on_one_line(given):
    removed, apart, usual = shifts_of(*given)
    assert ((usual >= 0) & (usual <= 1)).all()
    along = np.einsum("...d,...d", removed, apart)
    assert_allclose(along, lengths(removed) * lengths(apart), rtol=1e-6, atol=1e-9)


# Nothing depends on order, origin or unit


@settings(max_examples=100, deadline=None)
@given(any_tables(), seeds)
def test_order_origin_and_unit_do_not_matter(given, seed):
    count, mean, sd, in_reference = given
    expected = shifts_of(count, mean, sd, in_reference)
    rng = np.random.default_rng(seed)
    samples, states, dims = (rng.permutation(n) for n in mean.shape)
    origin, unit = rng.normal(0, 10, len(dims)), np.exp(rng.uniform(-3, 3, len(dims)))
    here = np.ix_(samples, states)
    other = shifts_of(
        count[here],
        ((mean + origin) * unit)[np.ix_(samples, states, dims)],
        (sd * unit)[np.ix_(states, dims)],
        in_reference[samples],
    )
    there = (count * (count[in_reference] > 0).any(axis=0))[here] > 0
    assert_allclose(
        other.inlier_weight[there], expected.inlier_weight[here][there], rtol=1e-6, atol=1e-9
    )
    for found, wanted in zip(other[:2], expected[:2], strict=True):
        wanted = (wanted * unit)[np.ix_(samples, states, dims)]
        assert_allclose(found, wanted, rtol=1e-6, atol=1e-8)


# One sample onto a reference that stays as it is


def cells_of(count, mean, sd, seed=0):
    """Return cells that have exactly these means by state, in random order, and their states."""
    rng = np.random.default_rng(seed)
    state = np.repeat(np.arange(len(count)), count.astype(int))
    z = rng.normal(size=(len(state), mean.shape[1]))
    for k in np.unique(state):
        z[state == k] -= z[state == k].mean(axis=0)
    z = mean[state] + sd[state] * z
    order = rng.permutation(len(state))
    return z[order], np.eye(len(count))[state[order]]


def embedded(seed=0, n=400):
    """Return places, shares and a reference of exactly these."""
    rng = np.random.default_rng(seed)
    state = rng.integers(0, 3, n)
    z = np.eye(3, 5)[state] * 10 + rng.normal(size=(n, 5))
    share = np.eye(3)[state]
    return z, share, Moments.by_group(z, np.zeros(n, dtype=int), 1, share)[0]


def test_what_lies_where_the_reference_lies_is_not_shifted():
    z, share, reference = embedded()
    assert_array_equal(shifts_onto(z, share, reference, 10.0).batch_effect, 0)
    other, others_share, _ = embedded(seed=1)
    assert np.abs(shifts_onto(other, others_share, reference, 10.0).batch_effect).max() < 0.2


def test_a_shift_within_states_is_found_as_far_as_it_is_certain():
    z, share, reference = embedded()
    found = shifts_onto(z + 2.0, share, reference, 10.0).batch_effect
    assert_allclose(found, 2, rtol=0.15)
    few = np.flatnonzero(np.cumsum(share, axis=0).max(axis=1) <= 3)  # three cells a state at most
    fewer = shifts_onto(z[few] + 2.0, share[few], reference, 10.0).batch_effect
    assert (np.abs(fewer) < np.abs(found)).all()


def test_nothing_leads_to_a_state_that_the_reference_lacks():
    z, share, reference = embedded()
    empty = np.array([1.0, 1.0, 0.0])
    reference = Moments(
        reference.count * empty, reference.mean * empty[:, None], reference.m2 * empty[:, None]
    )
    found = shifts_onto(z + 2.0, share, reference, 10.0)
    assert_array_equal(found.batch_effect[2], 0)
    assert_array_equal(found.sample_specific[2], 0)
    assert (found.batch_effect[:2] > 1).all()


@laws
@given(worlds)
def test_a_newcomers_cells_apart_stay_and_the_others_move_as_without_them(world):
    state = world.where
    reference = tables(world.count[0], world.level, world.sd)
    mean = world.mean[1].copy()
    mean[state] += world.far
    z, share = cells_of(world.count[1], mean, world.sd)
    found = shifts_onto(z, share, reference, 1.0)
    elsewhere = share[:, state] == 0
    without = shifts_onto(z[elsewhere], share[elsewhere], reference, 1.0)
    assert found.inlier_weight[state] < 1e-6
    assert lengths(found.batch_effect[state]) < 0.01
    certain = world.count[1, state] / (world.count[1, state] + 10)
    assert_allclose(found.sample_specific[state], certain * (mean - world.level)[state], atol=0.01)
    others = np.arange(len(mean)) != state
    assert_allclose(found.batch_effect[others], without.batch_effect[others], atol=0.02)
    assert_array_equal(found.sample_specific[others], 0)


@laws
@given(seeds, st.integers(2, 8), st.booleans())
def test_a_newcomers_batch_effect_is_usual_in_all_states(seed, n_states, grows):
    rng = np.random.default_rng(seed)
    sd = rng.uniform(0.4, 2, n_states)
    sd[:2] = 0.4, 2
    level = rng.normal(0, 5, (n_states, 6))
    reference = tables(rng.integers(20, 400, n_states).astype(float), level, sd[:, None])
    offset = 2 * rng.choice([-1, 1], 6) * (sd[:, None] if grows else np.ones((n_states, 1)))
    count = rng.integers(20, 100, n_states)
    found = shifts_onto(*cells_of(count, level + offset, sd[:, None]), reference, 1.0)
    assert_array_equal(found.inlier_weight, 1)
    assert_array_equal(found.sample_specific, 0)
    assert_allclose(found.batch_effect, offset, rtol=0.4, atol=0.01)


@laws
@given(any_tables(), seeds)
def test_a_newcomers_shifts_keep_their_bounds_and_depend_on_no_order_origin_or_unit(given, seed):
    count, mean, sd, _ = given
    reference = tables(count[0], mean[0], sd)
    z, share = cells_of(1 + np.round(count[-1]), mean[-1], sd, seed)
    found = shifts_onto(z, share, reference, 1.0)
    assert_within(found, mean[-1] - reference.mean)

    rng = np.random.default_rng(seed)
    cells, states, dims = (rng.permutation(n) for n in (len(z), *sd.shape))
    origin, unit = rng.normal(0, 10, len(dims)), np.exp(rng.uniform(-3, 3, len(dims)))
    there = reference.count > 0
    moved = tables(reference.count, (mean[0] + origin) * unit, sd * unit)
    moved = Moments(moved.count[states], *(of[states][:, dims] for of in (moved.mean, moved.m2)))
    z = ((z + origin) * unit)[np.ix_(cells, dims)]
    other = shifts_onto(z, share[np.ix_(cells, states)], moved, 1.0)
    same = there[states]  # of a state that the reference lacks nothing is known
    assert_allclose(
        other.inlier_weight[same], found.inlier_weight[states][same], rtol=1e-6, atol=1e-9
    )
    for ours, wanted in zip(other[:2], found[:2], strict=True):
        assert_allclose(ours, (wanted * unit)[np.ix_(states, dims)], rtol=1e-6, atol=1e-8)


# A cell type that one sample alone has, in a state of the others


def with_a_type_of_its_own(seed=0, *, far=0.7, beside=False, n_own=60):
    """Return cells of three samples; the last one's "type4" lies near the others' "type3".

    Its distance is `far` spreads of the types' profiles, in random genes.  Types lie much farther
    from one another.  beside: the last sample has cells of the others' type as well.
    """
    parts = [
        draw((60, 60, 60, 60), sample=name, seed=10 * seed + i, **effect(100 + seed + i, 0.3))
        for i, name in enumerate("abc")
    ]
    last = parts.pop()
    like = np.flatnonzero(last.obs["type"] == "type3")
    own = like[:n_own]
    away = np.random.default_rng(seed).normal(0, far, N_GENES)
    changed = draw((0, 0, 0, n_own), sample="c'", seed=10 * seed + 3, **effect(102 + seed, 0.3))
    if beside:
        last = concat([last, changed])
        own = np.arange(last.n_obs) >= last.n_obs - n_own
    last.X[own] += away.astype(np.float32)
    last.obs["type"] = last.obs["type"].astype(str)
    last.obs.iloc[own, last.obs.columns.get_loc("type")] = "type4"
    last.obs["sample"] = "c"
    return concat([*parts, last])


def of(cells, kind, samples="abc"):
    there = np.array([sample in samples for sample in cells.obs["sample"]])
    return there & (cells.obs["type"] == kind).to_numpy()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore:.*fit the reference badly")  # a type is unknown
def test_a_copy_of_a_sample_is_mapped_to_where_it_lies(seed):
    cells = with_a_type_of_its_own(seed)
    model = fitted(cells)
    z = model.embed(cells)
    copy = cells[cells.obs["sample"] == "c"].copy()
    copy.obs["sample"] = "copy"
    mapped = model.map(copy, batch_key="sample")

    def away(kind):
        there = z[of(cells, kind, "c")].mean(axis=0)
        return np.linalg.norm(mapped.embedding[of(copy, kind, ["copy"])].mean(axis=0) - there)

    gap = np.linalg.norm(
        z[of(cells, "type4")].mean(axis=0) - z[of(cells, "type3", "ab")].mean(axis=0)
    )
    assert away("type4") < 0.3 * gap
    assert max(away(kind) for kind in ("type0", "type1", "type2")) < 0.02 * gap

    # In corrected expression its own type differs from the others' by as much, too.
    corrected = model.correct(cells)
    usual = corrected[of(cells, "type3", "ab")].mean(axis=0)
    markers = corrected[of(cells, "type4")].mean(axis=0) - usual
    found = mapped.corrected[of(copy, "type4", ["copy"])].mean(axis=0) - usual
    assert found @ markers / (markers @ markers) == pytest.approx(1, abs=0.12)

    # And it is no unknown one.
    unknown = draw((60, 60, 60, 0, 60), seed=5, **effect(102 + seed, 0.3))
    strange = (unknown.obs["type"] == "type4").to_numpy()
    scores = model.map(unknown).score
    own = mapped.score[of(copy, "type4", ["copy"])].mean()
    assert own > scores[strange].mean() + 0.1


@pytest.mark.parametrize("seed", range(3))
def test_a_type_that_one_sample_alone_has_keeps_its_markers(seed):
    cells = with_a_type_of_its_own(seed, beside=True)
    corrected = fitted(cells).correct(cells)

    def markers(x):
        return x[of(cells, "type4")].mean(axis=0) - x[of(cells, "type3", "c")].mean(axis=0)

    before, after = markers(cells.X), markers(corrected)
    assert after @ before > 0.93 * before @ before


def test_a_reference_of_one_sample_is_what_the_others_become():
    # Its own shifts are all 0, which is as usual as can be.
    cells = concat([draw((60, 60, 60), sample="a"), draw((60, 60, 60), sample="b", **effect(1))])
    corrected = fitted(cells, reference="a").correct(cells)
    for kind in ("type0", "type1", "type2"):
        before, after = (
            np.abs(x[of(cells, kind, "a")].mean(axis=0) - x[of(cells, kind, "b")].mean(axis=0))
            for x in (cells.X, corrected)
        )
        assert after.mean() < 0.3 * before.mean()


# Published: nothing of few cells


@pytest.fixture(scope="module")
def of_its_own():
    return fitted(with_a_type_of_its_own(1))


def told(model, path, min_cells):
    """Return what is published of places, with what lies apart and without; and the states."""
    model.publish(path, min_cells=min_cells)
    arrays = read(path, ("model",)).arrays
    assert_array_equal(arrays["coordinates/count"], arrays["embedded/count"])
    differs = [
        (arrays[f"coordinates/{of}"] != arrays[f"embedded/{of}"]).any(axis=1)
        for of in ("mean", "m2")
    ]
    assert_array_equal(*differs)
    return differs[0], model.population_.reduced(min_cells)[1]


@pytest.mark.parametrize("min_cells", [3, 10, 20])
def test_where_few_cells_lie_apart_they_are_left_out(of_its_own, tmp_path, min_cells):
    model = of_its_own
    cells = (model.population_.by_state.count * (1 - model.states_.inlier_weight)).sum(axis=0)
    differs, states = told(model, tmp_path / "model", min_cells)
    assert_array_equal(differs, cells[states] >= min_cells)
    assert cells.max() > 5
    assert differs.any() or min_cells > 3
    assert not differs.any() or min_cells < 20


def test_cells_of_the_reference_alone_count_as_many(tmp_path):
    # Few of the reference lie apart; many of a sample outside of it do, where they are not told.
    cells = with_a_type_of_its_own(1)
    other = cells[cells.obs["sample"] == "a"].copy()
    other.obs["sample"] = "d"
    other.X += np.random.default_rng(0).normal(0, 0.3, other.shape).astype(np.float32)
    few = cells[of(cells, "type4")][:10].copy()
    few.obs["sample"] = "b"
    other.obs_names, few.obs_names = "d" + other.obs_names, "few" + few.obs_names
    cells = concat([cells[~of(cells, "type3", "b")], few, other])
    model = fitted(cells, reference=["a", "b", "d"])
    usual = dict(zip(model.samples_, model.states_.inlier_weight, strict=True))
    assert usual["b"].min() < 0.01
    assert usual["c"].min() < 0.01
    assert not told(model, tmp_path / "model", 5)[0].any()


def test_a_sample_of_few_cells_apart_is_not_told_beside_another_of_many(of_its_own, tmp_path):
    model = copy(of_its_own)
    differs, _ = told(model, tmp_path / "alone", 3)
    here = np.flatnonzero(differs)[0]
    state = model.population_.reduced(3)[1][here]
    count = model.population_.by_state.count[:, state]
    sample = np.argmax(count * model.states_.inlier_weight[:, state])
    usual = model.states_.inlier_weight.copy()
    usual[sample, state] = 1 - 2 / count[sample]  # two cells
    states = replace(model.states_, inlier_weight=usual)
    model.fitted_ = model.fitted_.with_mapper(replace(model.mapper_, states=states))
    assert not told(model, tmp_path / "both", 3)[0][here]
