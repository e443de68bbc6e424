import numpy as np
import pytest
import slow_missing
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import bioren
from bioren import AffineBridge, Moments
from bioren.adata.record import read_effects
from bioren.effects.alignment import Removal, align, compare
from bioren.effects.constants import MIN_OVERLAP
from bioren.effects.sizes import clipped
from bioren.effects.standardization import overlap_of, standardize
from bioren.effects.states import CellFacts

seeds = st.integers(0, 2**32 - 1)


def shifts(result):
    return result.samples.mean - result.reference.mean


def planted(counts, shift, level, m2=None):
    """Moments whose state means are exactly level + shift, where there are cells at all."""
    counts = np.asarray(counts, dtype=float)
    mean = (level + shift[:, None]) * (counts > 0)[..., None]
    m2 = counts[..., None] * np.ones_like(mean) if m2 is None else m2
    return Moments(counts, mean, m2)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, n_samples=st.integers(2, 6), n_states=st.integers(1, 5), data=st.data())
def test_additive_shifts_are_recovered_exactly_though_states_are_missing(
    seed, n_samples, n_states, data
):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 200, (n_samples, n_states)).astype(float)
    counts[rng.random(counts.shape) < 0.4] = 0
    counts[:, data.draw(st.integers(0, n_states - 1))] = 100  # ties all samples together
    shift, level = rng.normal(size=(n_samples, 3)), rng.normal(0, 10, (n_states, 3))
    result = standardize(planted(counts, shift, level))
    assert_allclose(shifts(result), shift - shift.mean(axis=0), atol=1e-8)


def test_a_chain_of_shared_states_ties_samples_that_share_none():
    counts = [[50, 0, 0, 0], [20, 30, 0, 0], [0, 40, 9, 0], [0, 0, 30, 60]]
    rng = np.random.default_rng(0)
    shift, level = rng.normal(size=(4, 2)), rng.normal(0, 10, (4, 2))
    assert_allclose(
        shifts(standardize(planted(counts, shift, level))), shift - shift.mean(axis=0), atol=1e-8
    )


@settings(max_examples=25, deadline=None)
@given(seed=seeds, n_reference=st.integers(1, 3))
def test_the_references_samples_have_no_shift_on_average(seed, n_reference):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 100, (4, 3))
    shift, level = rng.normal(size=(4, 2)), rng.normal(0, 5, (3, 2))
    in_reference = np.arange(4) < n_reference
    result = standardize(planted(counts, shift, level), in_reference)
    assert_allclose(shifts(result)[in_reference].mean(axis=0), 0, atol=1e-9)
    assert_allclose(shifts(result), shift - shift[in_reference].mean(axis=0), atol=1e-8)


@pytest.mark.parametrize("reference", [None, [0], [1], [0, 1]])
def test_a_sample_that_shares_no_state_gets_no_shift(reference):
    # It must not inherit the choice of the others' zero either.
    shift, level = np.array([[-1.0], [3.0], [50.0]]), np.array([[0.0], [7.0], [-20.0]])
    by_state = planted([[50, 50, 0], [30, 70, 0], [0, 0, 80]], shift, level)
    in_reference = None if reference is None else np.isin(np.arange(3), reference)
    result = standardize(by_state, in_reference)
    found = shifts(result)[:, 0]
    assert_allclose(found[2], 0, atol=1e-9)
    assert_allclose(found[1] - found[0], 4, atol=1e-9)
    zero = [0, 1] if reference is None else reference
    assert_allclose(found[zero].mean(), 0, atol=1e-9)
    assert_allclose(result.samples.std()[2], result.reference.std())


def test_sets_of_samples_that_share_no_state_are_centred_apart():
    shift = np.array([[-1.0], [1.0], [10.0], [14.0]])
    by_state = planted([[9, 0], [9, 0], [0, 9], [0, 9]], shift, np.zeros((2, 1)))
    assert_allclose(shifts(standardize(by_state))[:, 0], [-1, 1, -2, 2], atol=1e-9)
    found = shifts(standardize(by_state, np.array([True, False, True, False])))[:, 0]
    assert_allclose(found, [0, 2, 0, 4], atol=1e-9)


# The composition law


def two_compositions(seed=0, n_cells=2000, n_genes=40, shift=0.0):
    """One distribution per state, 90/10 against 10/90; the second sample may be shifted."""
    rng = np.random.default_rng(seed)
    codes = np.repeat([0, 1], n_cells)
    state = (rng.random(2 * n_cells) < np.where(codes == 0, 0.1, 0.9)).astype(int)
    level = np.stack([np.full(n_genes, 2.0), np.full(n_genes, 8.0)])
    x = rng.normal(level[state], 1)
    return x + shift * codes[:, None], codes, state


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_composition_is_not_taken_for_an_effect(shift):
    x, codes, state = two_compositions(shift=shift)
    plain = Moments.by_group(x, codes, 2)
    assert (np.abs(plain.mean[1] - plain.mean[0] - shift) > 2).all()  # within-state sd is 1
    result = standardize(Moments.by_group(x, codes, 2, np.eye(2)[state]))
    found = shifts(result)
    assert_allclose(found[1] - found[0], shift, atol=0.25)
    assert np.abs(found[1] - found[0] - shift).mean() < 0.1
    # Spread is compared within states too: no sample is taken to be wider than the other.
    assert_allclose(result.samples.std()[0] / result.samples.std()[1], 1, atol=0.1)


@pytest.mark.parametrize("iterations", [0, 2])
def test_alignment_finds_the_states_itself(iterations):
    x, codes, state = two_compositions(n_cells=600)
    found = align(
        x, CellFacts(codes), 2, rng=np.random.default_rng(0), n_components=5, iterations=iterations
    )
    moved = [  # means of either type in either sample
        (found.bridges[s].apply(cells) - cells).mean(axis=0)
        for s in (0, 1)
        for k in (0, 1)
        for cells in [x[(codes == s) & (state == k)]]
    ]
    within = np.abs(moved).mean()  # in units of the spread within a type
    if iterations:
        assert within < 0.1
    else:
        assert within > 1  # what raw moments do: each of the two goes half the way


def test_the_reference_is_the_mixture_that_its_samples_make():
    x, codes, state = two_compositions()
    result = standardize(Moments.by_group(x, codes, 2, np.eye(2)[state]))
    assert_allclose(result.reference.mean, x.mean(axis=0), atol=0.1)
    assert_allclose(result.reference.std(), x.std(axis=0), rtol=0.05)


def test_the_references_levels_do_not_depend_on_who_has_which_state():
    counts = np.array([[90.0, 10.0], [10.0, 90.0], [100.0, 0.0]])
    shift, level = np.array([[-3.0], [1.0], [5.0]]), np.array([[0.0], [10.0]])
    result = standardize(planted(counts, shift, level))
    composition = (counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)
    assert_allclose(result.reference.mean, composition @ (level + shift.mean()), atol=1e-9)


def test_each_sample_of_the_reference_weighs_the_same():
    level = np.array([[0.0], [10.0]])
    by_state = planted([[9000, 1000], [10, 90]], np.zeros((2, 1)), level)
    assert_allclose(standardize(by_state).reference.mean, 5, atol=1e-9)
    alone = standardize(by_state, np.array([False, True]))
    assert_allclose(alone.reference.mean, 9, atol=1e-9)


def test_the_ratio_of_spreads_is_that_within_states():
    counts = np.full((2, 2), 1e6)
    variance = np.array([1.0, 4.0])[:, None, None]
    level = np.array([[0.0], [10.0]])
    by_state = planted(counts, np.zeros((2, 1)), level, counts[..., None] * variance)
    result = standardize(by_state)
    ratio = result.samples.var()[:, 0] / result.reference.var()[0]
    assert_allclose(ratio, [1 / 2.5, 4 / 2.5], rtol=1e-4)


# Few cells


def test_samples_of_one_cell_stay_finite():
    rng = np.random.default_rng(0)
    codes = np.array([0] * 50 + [1, 2, 2])
    x = rng.normal(size=(53, 4))
    x[:, 3] = 0  # a gene that nobody expresses
    share = rng.dirichlet(np.ones(3), 53)
    result = standardize(Moments.by_group(x, codes, 3, share))
    for values in (result.samples.mean, result.samples.m2, result.reference.m2):
        assert np.isfinite(values).all()
    assert np.isfinite(result.standard_error).all()
    assert (result.samples.m2 >= 0).all()
    # One cell says nothing about spread.
    alone = standardize(Moments.by_group(x, codes, 3)[:, None])
    assert_allclose(alone.samples.std()[1], alone.reference.std())
    assert alone.standard_error[1, 0] > alone.standard_error[0, 0]


def test_the_standard_error_is_that_of_the_mean():
    rng = np.random.default_rng(1)
    draws = rng.normal(0, 2, (400, 25, 1))
    found = [
        standardize(
            Moments.by_group(np.vstack([draw, rng.normal(0, 2, (5000, 1))]), codes, 2)[:, None],
            np.array([False, True]),
        )
        for draw, codes in ((draw, np.repeat([0, 1], [25, 5000])) for draw in draws[:200])
    ]
    spread = np.std([shifts(result)[0, 0] for result in found])
    assert_allclose(np.mean([result.standard_error[0, 0] for result in found]), spread, rtol=0.15)


# From moments to a bridge


def test_random_halves_are_left_nearly_alone():
    rng = np.random.default_rng(2)
    x = rng.normal(3, 1, (400, 200))
    codes = rng.permutation(np.repeat([0, 1], 200))
    found = compare(standardize(Moments.by_group(x, codes, 2)[:, None]), Removal())
    assert np.abs(found.removed).mean() < 0.15
    assert found.standard_error_d.mean() == pytest.approx(0.5 * (2 / 200) ** 0.5, rel=0.1)


def test_a_strong_effect_is_removed_per_gene():
    rng = np.random.default_rng(3)
    x = rng.normal(3, 1, (1000, 50))
    codes = np.repeat([0, 1], 500)
    effect = rng.normal(0, 1, 50)
    x[codes == 1] += effect
    found = compare(standardize(Moments.by_group(x, codes, 2)[:, None]), Removal())
    assert np.corrcoef(found.d[1] - found.d[0], effect)[0, 1] > 0.99
    left = found.bridges[1].apply(x[500:]).mean(axis=0) - found.bridges[0].apply(x[:500]).mean(
        axis=0
    )
    assert np.abs(left).mean() < 0.02 < np.abs(effect).mean()


def test_the_bridge_removes_what_it_reports():
    rng = np.random.default_rng(4)
    x, codes = rng.normal(3, 1, (300, 10)), np.repeat([0, 1, 2], 100)
    x[codes == 2] = 2 * x[codes == 2] + 1
    x[:, 9] = 4  # constant
    standardized = standardize(Moments.by_group(x, codes, 3)[:, None])
    found = compare(standardized, Removal(strength=0.5))
    errors = found.standard_error_r, found.standard_error_d
    for field in (found.r, found.d, *errors, found.removed):
        assert field.shape == (3, 10)
        assert np.isfinite(field).all()
    # The bridge takes the share `removed` of d away from the sample's mean, and no more.
    mean = Moments.by_group(x, codes, 3).mean
    spread = found.reference.std() + (found.reference.std() == 0)
    left = (found.bridges.apply(mean) - found.reference.mean) / spread
    assert_allclose(left, found.d * (1 - found.removed), atol=1e-9)
    again = AffineBridge.between(found.samples, found.reference)
    assert_allclose(again.scale, compare(standardized, Removal()).bridges.scale)


def test_a_sample_that_shares_too_little_leaves_the_others_as_if_it_were_not_there():
    rng = np.random.default_rng(6)
    shift, level = rng.normal(size=(4, 3)), rng.normal(0, 10, (3, 3))
    counts = np.array([[100, 80, 0], [90, 120, 0], [60, 70, 0], [1, 0, 400]])
    m2 = np.ones((4, 3, 3)) * counts[..., None] * np.array([1, 1, 1, 9])[:, None, None]
    found = standardize(planted(counts, shift, level, m2))
    without = standardize(planted(counts[:3], shift[:3], level))
    assert found.overlap[3] < MIN_OVERLAP < found.overlap[:3].min()
    assert_allclose(shifts(found)[3], 0, atol=1e-9)
    assert_allclose(shifts(found)[:3], shifts(without), atol=1e-9)
    assert_allclose(found.samples.std()[3], found.reference.std())


def test_no_strength_is_no_change():
    rng = np.random.default_rng(5)
    x, codes = rng.normal(3, 1, (60, 5)), np.repeat([0, 1, 2], 20)
    found = compare(standardize(Moments.by_group(x, codes, 3)[:, None]), Removal(strength=0))
    assert_allclose(found.bridges.scale, 1)
    assert_allclose(found.bridges.shift, 0, atol=1e-12)
    assert_allclose(found.removed, 0, atol=1e-12)


# What a sample's scale acts on


@pytest.mark.parametrize("whole", [True, False], ids=["all of it", "the noise alone"])
def test_it_is_told_what_a_samples_scale_acts_on_and_the_shift_is_removed(whole):
    rng = np.random.default_rng(4)
    n, genes = 3000, 200
    types, scale = rng.normal(0, 1, (3, genes)), np.exp(rng.normal(0, 0.3, (3, genes)))
    kind, sample = rng.integers(0, 3, (2, n))
    noise = rng.normal(0, 1, (n, genes))
    x = (types[kind] + noise) * scale[sample] if whole else types[kind] + noise * scale[sample]
    x += rng.normal(0, 0.8, (3, genes))[sample]
    found = standardize(Moments.by_group(x, sample, 3, np.eye(3)[kind]))
    assert_allclose(found.scales_states, float(whole), atol=1e-6)

    def between(values):
        means = np.array(
            [[values[(kind == k) & (sample == s)].mean(axis=0) for s in range(3)] for k in range(3)]
        )
        return np.abs(means - means.mean(axis=1, keepdims=True)).mean()

    adata = AnnData(x, obs={"sample": np.array(list("abc"))[sample]})
    bioren.pp.bridge(adata, "sample")
    assert between(adata.layers["bioren"]) < 0.08 * between(x)


def test_genes_that_are_silent_in_some_states_do_not_decide_what_a_scale_acts_on():
    rng = np.random.default_rng(0)
    n, genes, kinds = 2000, 300, 5
    rate = rng.gamma(2, 0.5, (kinds, genes))
    rate[:, :30] = np.where(np.arange(30) % kinds == np.arange(kinds)[:, None], 4.0, 4e-3)
    kind, sample = rng.integers(0, kinds, n), rng.integers(0, 2, n)
    x = np.log1p(rng.poisson(rate[kind]))
    center = np.array([x[kind == k].mean(axis=0) for k in range(kinds)])[kind]
    x = np.where((sample == 1)[:, None], center + 1.5 * (x - center), x)  # the noise alone
    found = standardize(Moments.by_group(x, sample, 2, np.eye(kinds)[kind]))
    assert_allclose(found.scales_states, 0, atol=1e-3)


def test_limits_are_judged_by_what_can_be_removed():
    rng = np.random.default_rng(1)
    kind, sample = rng.integers(0, 3, 1500), rng.integers(0, 2, 1500)
    noise = rng.normal(0, 1, (1500, 60)) * np.where(sample == 1, 6.0, 1.0)[:, None]
    x = rng.normal(0, 8, (3, 60))[kind] + noise
    adata = AnnData(x, obs={"sample": np.array(list("ab"))[sample]})
    bioren.pp.bridge(adata, "sample")
    effects = read_effects(adata, "bioren")
    assert_allclose(effects.scales_states, 0, atol=1e-3)
    of_r, _ = clipped(
        effects.removable_r, effects.d, effects.standard_error_d, settings=effects.settings
    )
    assert_allclose(of_r, 0)


@given(st.integers(1, 200), st.integers(1, 4), st.floats(0.01, 1))
def test_overlap_of_samples_alike_in_composition_does_not_depend_on_their_sizes(n, ratio, share):
    part = np.array([share, 1.0, 0.5])
    count = n * np.vstack([part, part * 10.0**ratio])
    assert (overlap_of(count) >= 0.5 - 1e-12).all()


def test_a_tissue_that_holds_the_one_type_of_another_sample_overlaps_with_it():
    tissue, sorted_cells = [10_000.0, 200.0], [0.0, 200.0]
    found = overlap_of(np.array([tissue, sorted_cells]))
    assert found[0] > MIN_OVERLAP
    assert found[1] > 0.9


def test_samples_of_which_each_lives_by_itself_do_not_overlap():
    leak = 0.001  # shares in states are soft
    found = overlap_of(np.array([[20_000.0, 20_000 * leak], [20 * leak, 20.0]]))
    assert found[0] < MIN_OVERLAP


@pytest.mark.parametrize("n", [20, 40])
@pytest.mark.parametrize("reference", [None, [True, False], [False, True]])
def test_a_small_sample_is_corrected_beside_a_large_one(n, reference):
    # Four types in equal shares, states by type: the fewer cells are 1 % of all.
    rng = np.random.default_rng(n)
    level, shift = rng.normal(0, 2, (4, 200)), rng.normal(0, 0.7, 200)
    codes = np.repeat([0, 1], [n, 2000])
    kind = np.arange(len(codes)) % 4
    x = level[kind] + rng.normal(0, 0.7, (len(codes), 200)) + np.outer(codes == 0, shift)
    states = np.eye(4)[kind] @ np.kron(
        np.eye(4), np.full((1, 15), 1 / 15)
    )  # 60, as many as cells need
    by_state = Moments.by_group(x, codes, 2, states)
    found = compare(
        standardize(by_state, None if reference is None else np.array(reference)), Removal()
    )
    corrected = [found.bridges[s].apply(x[codes == s]).mean(axis=0) for s in (0, 1)]
    left = np.sqrt(np.mean(np.square(corrected[0] - corrected[1])))
    assert left < 0.25 * np.sqrt(np.mean(np.square(shift)))


# Missing values


def with_holes(seed, *, sizes=(40, 60, 50), n_genes=6, n_states=3):
    """Return cells of shifted samples, their samples and shares in states; values are missing."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    share = rng.dirichlet(np.full(n_states, 0.3), len(codes))
    x = rng.normal(0, 3, (n_states, n_genes))[share.argmax(axis=1)]
    x += rng.normal(size=x.shape) + rng.normal(size=(len(sizes), n_genes))[codes]
    # Some genes are missing more than others, the first is complete.
    return np.where(rng.random(x.shape) < 0.12 * np.arange(n_genes), np.nan, x), codes, share


@settings(max_examples=20, deadline=None)
@given(seed=seeds, n_reference=st.integers(1, 3))
def test_each_gene_is_compared_as_if_the_cells_that_have_it_were_the_data(seed, n_reference):
    x, codes, share = with_holes(seed)
    in_reference = np.arange(3) < n_reference
    found = standardize(Moments.by_group(x, codes, 3, share), in_reference)
    assert_allclose(shifts(found), slow_missing.shifts(x, codes, share, in_reference), atol=1e-8)
    for gene in range(x.shape[1]):
        some = ~np.isnan(x[:, gene])
        by_state = Moments.by_group(x[some][:, [gene]], codes[some], 3, share[some])
        alone = standardize(by_state, in_reference)
        for of, expected in ((found.samples, alone.samples), (found.reference, alone.reference)):
            assert_allclose(of.count[..., gene], expected.count)
            assert_allclose(of.mean[..., gene], expected.mean[..., 0])
            assert_allclose(of.var()[..., gene], expected.var()[..., 0])
        assert_allclose(found.standard_error[:, gene], alone.standard_error[:, 0])


def test_what_a_scale_acts_on_is_told_by_the_values_that_there_are():
    rng = np.random.default_rng(4)
    types, scale = rng.normal(0, 1, (3, 200)), np.exp(rng.normal(0, 0.3, (3, 200)))
    kind, sample = rng.integers(0, 3, (2, 3000))
    noise = rng.normal(0, 1, (3000, 200))
    missing = rng.random(noise.shape) < rng.uniform(0, 0.7, 200)
    for x, expected in (
        ((types[kind] + noise) * scale[sample], 1),
        (types[kind] + noise * scale[sample], 0),
    ):
        by_state = Moments.by_group(np.where(missing, np.nan, x), sample, 3, np.eye(3)[kind])
        assert_allclose(standardize(by_state).scales_states, expected, atol=1e-6)


def test_one_missing_value_changes_next_to_nothing():
    x, codes, share = with_holes(0, sizes=(400, 500, 600))
    x = np.nan_to_num(x)
    whole = standardize(Moments.by_group(x, codes, 3, share))
    x[0, 3] = np.nan
    found = standardize(Moments.by_group(x, codes, 3, share))
    others = np.arange(6) != 3
    assert_allclose(shifts(found)[:, others], shifts(whole)[:, others], atol=1e-10)
    assert_allclose(found.standard_error[:, others], whole.standard_error[:, others])
    assert_allclose(found.scales_states, whole.scales_states, atol=0.05)
    assert_allclose(found.overlap, whole.overlap, rtol=1e-3)
    assert np.abs(shifts(found) - shifts(whole)).max() < 0.02


def test_genes_that_cannot_be_compared_are_left():
    x, codes, share = with_holes(1)
    x[codes == 0, 1] = np.nan  # a sample lacks the gene
    x[(codes != 2), 2] = np.nan  # one sample alone has it
    x[codes == 1, 3] = np.nan  # the reference lacks it
    in_reference = np.arange(3) == 1
    found = standardize(Moments.by_group(x, codes, 3, share), in_reference)
    alignment = compare(found, Removal())
    left = np.zeros((3, 6), dtype=bool)
    left[0, 1] = left[:, 2] = left[:, 3] = True
    assert_allclose(np.isinf(alignment.standard_error_d), left)
    assert_allclose(np.isinf(alignment.standard_error_r), left)
    assert_allclose(alignment.r[left], 1)
    for of in (alignment.d, alignment.removed, alignment.bridges.shift):
        assert_allclose(of[left], 0, atol=1e-12)
    assert_allclose(alignment.bridges.scale[left], 1)
    assert (np.abs(alignment.d[~left]) > 0).sum() == (~left & (np.arange(3) != 1)[:, None]).sum()
    full = alignment.full
    for of in (alignment.r, alignment.d, full.scale, full.shift):
        assert np.isfinite(of).all()
