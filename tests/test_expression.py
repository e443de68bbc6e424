import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from bioren.arrays.moments import Moments
from bioren.bridge import AffineBridge
from bioren.effects import expression
from bioren.effects.expression import ExpressionBridge

N_GENES = 12


def cells(seed=0, *, sizes=(400, 300), effect=1.0):
    """Two states; the samples differ by a shift of each gene that is another one in each state.

    The last two genes are not expressed in the second state, and have no effect there.
    """
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    state = rng.integers(0, 2, len(codes))
    shift = effect * rng.normal(size=(len(sizes), 2, N_GENES))
    x = 3 + state[:, None] + shift[codes, state] + rng.normal(0, 0.5, (len(codes), N_GENES))
    x[state == 1, -2:] = 0
    share = np.eye(2)[state]
    return x, codes, state, share


def same(n_samples=2):
    return AffineBridge(np.ones((n_samples, N_GENES)), np.zeros((n_samples, N_GENES)))


def moved_by(n_samples, seed=1):
    rng = np.random.default_rng(seed)
    scale = np.exp(0.2 * rng.normal(size=(n_samples, N_GENES)))
    return AffineBridge(scale, rng.normal(size=(n_samples, N_GENES)))


def gaps(x, codes, state):
    """Difference of the samples' means, states x genes."""
    return np.array(
        [
            x[(codes == 0) & (state == k)].mean(axis=0)
            - x[(codes == 1) & (state == k)].mean(axis=0)
            for k in (0, 1)
        ]
    )


def fit(x, codes, share, full=None, **options):
    full = full or same(codes.max() + 1)
    by_state = Moments.by_group(x, codes, codes.max() + 1, share)
    usual = np.ones(by_state.count.shape)
    return ExpressionBridge.fit(
        by_state, full, **({"bridges": full, "inlier_weight": usual} | options)
    )


def test_what_differs_by_state_is_removed():
    x, codes, state, share = cells()
    corrected = fit(x, codes, share).apply(x, codes, share)
    assert np.abs(gaps(x, codes, state)).max() > 1
    assert np.abs(gaps(corrected, codes, state)).max() < 0.1


def test_genes_that_a_state_does_not_express_go_back_where_they_were():
    x, codes, state, share = cells()
    full = moved_by(2)
    full.scale[:, -2:] = 1
    full.shift[:] -= full.shift.mean(axis=0)
    corrected = fit(x, codes, share, full).apply(x, codes, share)
    silent = corrected[state == 1][:, -2:]
    assert np.abs(silent).max() < 0.02 * np.abs(full.shift[:, -2:]).max()


def test_random_halves_hardly_move():
    x, _, _, share = cells(sizes=(700,), effect=0)
    half = np.random.default_rng(2).permutation(len(x)) % 2
    moved = fit(x, half, share).apply(x, half, share) - x
    assert np.mean(np.abs(moved) > 1e-9) < 0.1
    assert np.abs(moved).mean() < 0.005


def test_a_tiny_sample_does_not_move_a_large_one():
    x, codes, _, share = cells(sizes=(2000, 20), effect=0)
    for reference in (None, np.array([False, True])):
        moved = fit(x, codes, share, in_reference=reference).apply(x, codes, share) - x
        assert np.mean(np.abs(moved[codes == 0]) > 1e-9) < 0.15  # chance: 5% beyond two errors


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_strength_is_the_share_of_each_move(strength):
    x, codes, _, share = cells()
    whole = fit(x, codes, share).apply(x, codes, share) - x
    part = fit(x, codes, share, strength=strength).apply(x, codes, share) - x
    assert_allclose(part, strength * whole, atol=1e-5)


def test_no_gene_is_moved_further_than_the_limit():
    x, codes, state, share = cells(effect=3)
    most = np.linspace(0.1, 2, N_GENES)
    moved = fit(x, codes, share, most=most).apply(x, codes, share) - x
    for sample in (0, 1):
        for k in (0, 1):
            mean = np.abs(moved[(codes == sample) & (state == k)].mean(axis=0))
            assert (mean <= most + 1e-5).all()
    assert np.abs(moved).max() > 1


def test_the_reference_stays_where_it_is():
    x, codes, state, share = cells()
    there = np.array([False, True])
    corrected = fit(x, codes, share, in_reference=there).apply(x, codes, share)
    assert_allclose(corrected[codes == 1], x[codes == 1], atol=1e-5)
    assert np.abs(gaps(corrected, codes, state)).max() < 0.15


def test_a_state_that_one_sample_alone_has_stays():
    x, codes, state, share = cells()
    here = (codes == 0) | (state == 0)
    x, codes, state, share = x[here], codes[here], state[here], share[here]
    corrected = fit(x, codes, share).apply(x, codes, share)
    assert_allclose(corrected[state == 1], x[state == 1], atol=1e-5)


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, np.float32])
def test_any_form_and_each_row_by_itself(form):
    x, codes, _, share = cells()
    bridge = fit(x, codes, share, moved_by(2))
    whole = bridge.apply(x, codes, share)
    other = fit(form(x), codes, share, moved_by(2))
    assert_allclose(other.apply(form(x), codes, share), whole, atol=1e-4)
    for i in (0, 350, 699):
        assert_allclose(bridge.apply(x[[i]], codes[[i]], share[[i]])[0], whole[i], atol=1e-6)


def test_blocks_of_genes_give_the_same(monkeypatch):
    x, codes, _, share = cells()
    whole = fit(x, codes, share)
    monkeypatch.setattr(expression, "TABLE_ENTRIES", 20)  # five genes at a time
    assert_allclose(fit(x, codes, share).shift, whole.shift, atol=1e-6)
    assert_allclose(fit(sparse.csr_matrix(x), codes, share).shift, whole.shift, atol=1e-6)


def test_some_genes():
    x, codes, _, share = cells()
    bridge, genes = fit(x, codes, share), np.array([7, 2, 11])
    whole = bridge.apply(x, codes, share)
    assert_array_equal(bridge.of_genes(genes).apply(x[:, genes], codes, share), whole[:, genes])
    assert bridge.of_genes(np.arange(N_GENES)) is bridge


# What lies apart in a state


def test_a_sample_apart_in_a_state_is_moved_by_its_bridge_alone():
    x, codes, state, share = cells(sizes=(300, 300, 200))
    full, usual = moved_by(3), np.ones((3, 2))
    usual[2, 0] = 0
    corrected = fit(x, codes, share, full, inlier_weight=usual).apply(x, codes, share)
    bridged = full.scale[codes] * x + full.shift[codes]
    there = (codes == 2) & (state == 0)
    assert_allclose(corrected[there], bridged[there], atol=1e-5)
    elsewhere = (codes == 2) & (state == 1)
    assert np.abs(corrected[elsewhere] - bridged[elsewhere]).max() > 0.5


@pytest.mark.parametrize("away", [-3.0, 50.0])
def test_a_sample_apart_in_a_state_does_not_say_where_others_go(away):
    x, codes, state, share = cells(sizes=(300, 300, 200))
    usual = np.ones((3, 2))
    usual[2, 0] = 0
    there = (codes == 2) & (state == 0)
    other = x + away * there[:, None]
    found, expected = (
        fit(y, codes, share, inlier_weight=usual).apply(y, codes, share) for y in (other, x)
    )
    assert_allclose(found[~there], expected[~there], atol=1e-5)
    swayed, still = (fit(y, codes, share).apply(y, codes, share) for y in (other, x))
    assert np.abs(swayed - still)[~there].max() > 0.5


def test_the_less_usual_the_less_is_removed():
    x, codes, state, share = cells(sizes=(300, 300, 200))
    there = (codes == 2) & (state == 0)
    moved = []
    for how in (0.0, 0.3, 0.7, 1.0):
        usual = np.ones((3, 2))
        usual[2, 0] = how
        moved.append(
            np.abs(fit(x, codes, share, inlier_weight=usual).apply(x, codes, share) - x)[there]
        )
    assert (np.diff(np.mean(moved, axis=(1, 2))) > 0.05).all()
    assert np.abs(moved[0]).max() < 1e-5


@pytest.mark.parametrize("n_cells", [3, 30, 300])
def test_where_no_sample_of_the_reference_is_usual_it_stays_where_it_is(n_cells):
    # All of them apart in a state weigh as they did: a sample outside goes to their middle.
    x, codes, _, share = cells(sizes=(2 * n_cells, 400))
    reference, usual = np.array([True, False]), np.ones((2, 2))
    usual[0] = 0
    found, expected = (
        fit(x, codes, share, inlier_weight=of, in_reference=reference).apply(x, codes, share)
        for of in (usual, np.ones((2, 2)))
    )
    assert_allclose(found[codes == 1], expected[codes == 1], atol=1e-4)
