import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from bioren import AffineBridge
from bioren.arrays.apply import apply_by_sample
from bioren.effects.alignment import Removal, align, warn_isolated
from bioren.effects.clusters import sketched
from bioren.effects.states import CellFacts


def simulated(
    seed=0, *, sizes=(400, 400, 400), mixes=((5, 3, 2), (2, 5, 3), (3, 2, 5)), effect=0.5
):
    """Cells of three types, in samples of different compositions; each sample shifts each gene.

    Returns x, codes, types, and the planted shifts (samples x genes, 0 on average).
    """
    rng = np.random.default_rng(seed)
    n_genes = 40
    level = rng.normal(3, 1, (3, n_genes))
    shift = effect * rng.normal(size=(len(sizes), n_genes))
    shift -= shift.mean(axis=0)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    kind = np.concatenate(
        [rng.choice(3, n, p=np.array(mix) / 10) for n, mix in zip(sizes, mixes, strict=True)]
    )
    x = level[kind] + shift[codes] + rng.normal(0, 0.5, (len(codes), n_genes))
    return x, codes, kind, shift


def fit(x, codes, *, labels=None, seed=0, **options):
    options = {"n_components": 8, **options}
    facts = CellFacts(codes, labels=labels)
    return align(x, facts, int(codes.max()) + 1, rng=np.random.default_rng(seed), **options)


def planted_and_found(found, shift):
    effect = found.d * (found.reference.std() + (found.reference.std() == 0))
    return np.corrcoef(effect.ravel(), shift.ravel())[0, 1]


def test_planted_shifts_are_found_though_compositions_differ():
    x, codes, kind, shift = simulated()
    found = fit(x, codes)
    assert planted_and_found(found, shift) > 0.97
    assert planted_and_found(fit(x, codes, iterations=0), shift) < 0.95
    corrected = apply_by_sample(x, codes, found.bridges)
    for k in range(3):
        before, after = (
            np.std([y[(codes == s) & (kind == k)].mean(axis=0) for s in range(3)], axis=0).mean()
            for y in (x, corrected)
        )
        assert after < 0.35 * before


def test_bridges_lead_back():
    x, codes, _, _ = simulated(1)
    found = fit(x, codes)
    corrected = apply_by_sample(x, codes, found.bridges)
    assert_allclose(apply_by_sample(corrected, codes, found.bridges.invert()), x, atol=1e-9)


def test_sparse_and_dense_agree():
    x, codes, _, _ = simulated(2, sizes=(100, 100, 100))
    x = np.where(x > 3, x, 0)
    dense, thin = fit(x, codes), fit(sparse.csr_matrix(x), codes)
    assert_allclose(dense.d, thin.d, atol=1e-5)
    assert_allclose(dense.bridges.shift, thin.bridges.shift, atol=1e-5)


def test_only_the_reference_is_left_alone():
    x, codes, _, shift = simulated(3)
    found = fit(x, codes, in_reference=np.array([False, True, False]))
    assert_allclose(found.d[1], 0, atol=1e-9)
    assert_allclose(found.bridges.shift[1], 0, atol=1e-2)
    assert planted_and_found(found, shift - shift[1]) > 0.97


def test_states_sought_in_some_genes_bridge_all():
    x, codes, _, shift = simulated(4)
    genes = np.arange(1, 40, 2)
    found = fit(x, codes, variable=(x[:, genes], genes))
    assert found.bridges.scale.shape == (3, 40)
    assert planted_and_found(found, shift) > 0.97


def test_the_guard_holds():
    x, codes, _, _ = simulated(5, effect=3.0)
    x[codes == 1] *= 4
    found = fit(x, codes, removal=Removal(max_removed=(1.2, 0.3)))
    assert np.abs(found.d * found.removed).max() <= 0.3 + 1e-9
    assert np.abs(np.log(found.bridges.scale)).max() <= math.log(1.2) + 1e-9
    assert np.abs(found.d).max() > 0.3


def test_by_default_no_gene_is_rescaled_more_than_twofold():
    x, codes, _, _ = simulated(6)
    x[codes == 1] *= 5
    scale = fit(x, codes, iterations=0).bridges.scale  # samples so far apart share no state
    assert_allclose(np.abs(np.log(scale)).max(), math.log(2))


def test_same_seed_same_alignment():
    x, codes, _, _ = simulated(7, sizes=(60, 60, 60))
    assert_array_equal(fit(x, codes).bridges.shift, fit(x, codes).bridges.shift)


@pytest.mark.parametrize("few", [1, 2, 3])
def test_tiny_samples(few):
    x, codes, _, _ = simulated(8, sizes=(100, 100, few))
    x[:, 0], x[codes == 2, 1] = 0, 7
    found = fit(x, codes)
    for table in (found.r, found.d, found.removed, found.bridges.scale, found.bridges.shift):
        assert np.isfinite(table).all()
    assert (found.bridges.scale > 0).all()


def test_identical_cells():
    x, codes = np.full((20, 5), 2.0), np.arange(20) % 2
    found = fit(x, codes, n_components=3)
    assert_allclose(apply_by_sample(x, codes, found.bridges), x)


def test_many_samples_times_genes_have_fewer_states(monkeypatch):
    x, codes, _, shift = simulated(9)
    monkeypatch.setattr("bioren.effects.alignment.TABLE_ENTRIES", 3 * 40 * 5)
    seen = []
    from bioren.effects.states import ConditionalBridge

    def fewer(*args, n_states, **options):
        seen.append(n_states)
        return ConditionalBridge.fit(*args, n_states=n_states, **options)

    monkeypatch.setattr(
        "bioren.effects.alignment.ConditionalBridge", type("Spy", (), {"fit": fewer})
    )
    assert planted_and_found(fit(x, codes), shift) > 0.9
    assert set(seen) == {5}


def test_an_effect_that_drowns_the_types_is_found_and_said():
    x, codes, _, shift = simulated(4)
    strong = 12 * np.random.default_rng(4).normal(size=shift.shape)
    strong -= strong.mean(axis=0)
    found = fit(x + strong[codes], codes)
    assert found.overlap_before.max() < 0.05
    assert found.overlap.min() > 0.2
    assert planted_and_found(found, shift + strong) > 0.9
    with pytest.warns(UserWarning, match="3 of 3 samples.*plain moments were matched"):
        warn_isolated(["a", "b", "c"], found)


def test_samples_that_overlap_start_unmatched_and_raise_no_warning():
    x, codes, _, _ = simulated(4)
    found = fit(x, codes)
    assert found.overlap_before.min() > 0.1
    warn_isolated(["a", "b", "c"], found)  # warnings are errors


# What would be removed without limits


@pytest.mark.parametrize(
    "removal",
    [Removal(0.0), Removal(0.4), Removal(max_kept=(1.2, 0.3)), Removal(max_removed=(1.1, 0.1))],
)
def test_samples_are_compared_in_full_whatever_strength_and_limits_say(removal):
    x, codes, _, _ = simulated(10)
    everything, found = fit(x, codes), fit(x, codes, removal=removal)
    assert_array_equal(everything.bridges.shift, everything.full.shift)
    for name in ("scale", "shift"):
        assert_array_equal(getattr(found.full, name), getattr(everything.full, name))
    again = AffineBridge.between(found.samples, found.reference)
    assert_allclose(again.scale, found.full.scale)
    assert_allclose(again.shift, found.full.shift, atol=1e-12)
    moved, most = (
        np.abs(apply_by_sample(x, codes, bridges) - x).mean()
        for bridges in (found.bridges, found.full)
    )
    assert moved < 0.8 * most


# Labels


def test_types_that_labels_alone_tell_from_a_batch_effect_are_compared_apart():
    x, codes, kind, shift = simulated(11, sizes=(300, 300), mixes=((5, 5, 0), (5, 0, 5)))
    x[kind == 2] += x[kind == 1].mean(axis=0) - x[kind == 2].mean(axis=0)
    x[kind == 2, ::2] += 0.6  # type 2 is much like type 1, which the other sample has

    def excess(found):
        effect = (found.d[1] - found.d[0]) * found.reference.std()
        error = effect - (shift[1] - shift[0])
        return error[::2].mean() - error[1::2].mean()

    assert excess(fit(x, codes)) > 0.2
    assert abs(excess(fit(x, codes, labels=kind))) < 0.05
    unknown = np.full(len(kind), -1)
    assert_allclose(fit(x, codes, labels=unknown).d, fit(x, codes).d, atol=1e-6)


def test_covariates_play_no_part():
    x, codes, _, _ = simulated(12, sizes=(60, 60, 60))
    covariates = np.random.default_rng(0).normal(size=(len(codes), 2))
    found = align(x, CellFacts(codes, covariates), 3, rng=np.random.default_rng(0), n_components=8)
    assert_array_equal(found.d, fit(x, codes).d)


# A sketch of the cells


sizes = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@given(sizes=sizes, most=st.integers(1, 200), seed=st.integers(0, 2**32 - 1))
def test_a_sketch_takes_small_samples_whole_and_of_large_ones_the_same(sizes, most, seed):
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bioren.effects.clusters.SKETCH", most)
        sketch = sketched(codes, len(sizes), rng)
    assert_array_equal(sketch, np.unique(sketch))  # ascending, each cell once
    taken = np.bincount(codes[sketch], minlength=len(sizes))
    quota = taken.max()
    assert_array_equal(taken, np.minimum(sizes, quota))
    assert len(sketch) <= max(most, len(sizes))  # a cell of each sample, be they so many
    one_more = np.minimum(sizes, quota + 1).sum()
    assert one_more > most or len(sketch) == len(codes)


def test_a_sketch_depends_on_the_seed_and_differs_from_the_first_cells():
    codes = np.repeat([0, 1], 10_000)
    first, again, other = (sketched(codes, 2, np.random.default_rng(s)) for s in (0, 0, 1))
    assert_array_equal(first, again)
    assert len(np.intersect1d(first, other)) < 0.5 * len(first)
    assert np.bincount(first // 1000, minlength=20).min() > 150  # from everywhere


def test_a_sketch_leaves_out_no_label():
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(20_000) < 2, 1, rng.choice([-1, 0], 20_000))
    sketch = sketched(np.zeros(20_000, dtype=int), 1, rng, labels=labels)
    assert (labels[sketch] == 1).any()
    assert len(sketch) <= 5003


@pytest.mark.parametrize("most", [150, 400])
def test_states_of_a_sketch_find_planted_shifts_in_all_cells(monkeypatch, most):
    x, codes, _, shift = simulated(13, sizes=(900, 300, 60))
    whole = fit(x, codes)
    monkeypatch.setattr("bioren.effects.clusters.SKETCH", most)
    found = fit(x, codes)
    assert planted_and_found(found, shift) > 0.95
    assert_allclose(found.samples.count, [900, 300, 60], rtol=1e-6)
    assert np.corrcoef(found.d.ravel(), whole.d.ravel())[0, 1] > 0.97
    thin = fit(sparse.csr_matrix(x), codes)
    assert_allclose(thin.d, found.d, atol=1e-4)
