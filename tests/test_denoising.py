import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from bioren import AffineBridge
from bioren.effects.denoising import Denoiser, reliability

numbers = st.floats(-100, 100, width=32)


@st.composite
def placed(draw):
    """Draw an embedding, shares in states, what lies apart, and reliabilities."""
    n_cells, n_dims, n_states = (draw(st.integers(1, most)) for most in (12, 4, 3))
    z = draw(arrays(np.float64, (n_cells, n_dims), elements=numbers))
    share = draw(arrays(np.float64, (n_cells, n_states), elements=st.floats(0.01, 1)))
    apart = draw(arrays(np.float64, (n_cells, n_dims), elements=numbers))
    trust = draw(arrays(np.float64, n_dims, elements=st.floats(0, 1)))
    return z, share / share.sum(axis=1, keepdims=True), apart, trust


# Cells drawn to their states


@given(placed())
def test_each_cell_lies_between_its_states_centers_and_its_place(given):
    z, share, apart, trust = given
    denoiser = Denoiser.fit(z, share, apart, reliability=trust)
    moved = denoiser.denoised(z, share, apart)
    for i in range(len(z)):
        centers = [np.average(z - apart, axis=0, weights=w) for w in share.T]
        center = sum(share[i, k] * center for k, center in enumerate(centers)) + apart[i]
        kept = np.sqrt(trust)
        assert_allclose(moved[i], kept * z[i] + (1 - kept) * center, rtol=1e-6, atol=1e-6)


@given(placed())
def test_reliable_dimensions_stay_and_noise_goes(given):
    z, share, apart, _ = given
    everything, nothing = np.ones(z.shape[1]), np.zeros(z.shape[1])
    found = Denoiser.fit(z, share, apart, reliability=everything)
    assert_allclose(found.denoised(z, share, apart), z, atol=1e-9)
    noise = Denoiser.fit(z, share, apart, reliability=nothing)
    assert_allclose(noise.denoised(z, share, apart), share @ noise.centers + apart, atol=1e-9)


@given(placed())
def test_states_keep_their_places(given):
    # A cell lies wholly in one state here: with shares, neighboring states blend a little.
    z, share, apart, trust = given
    whole = np.eye(share.shape[1])[share.argmax(axis=1)]
    denoiser = Denoiser.fit(z, whole, apart, reliability=trust)
    again = Denoiser.fit(denoiser.denoised(z, whole, apart), whole, apart, reliability=trust)
    assert_allclose(again.centers, denoiser.centers, atol=1e-6)


@given(placed(), st.floats(-10, 10))
def test_what_lies_apart_is_drawn_as_if_it_did_not_and_stays_there(given, away):
    z, share, apart, trust = given
    together = Denoiser.fit(z - apart, share, np.zeros_like(z), reliability=trust)
    denoiser = Denoiser.fit(z, share, apart, reliability=trust)
    assert_allclose(denoiser.centers, together.centers, atol=1e-6)
    expected = together.denoised(z - apart, share, np.zeros_like(z)) + apart
    assert_allclose(denoiser.denoised(z, share, apart), expected, atol=1e-6)
    moved = denoiser.denoised(z + away, share, apart + away)
    assert_allclose(moved, expected + away, atol=1e-6)


@given(placed(), st.data())
def test_each_row_depends_on_its_own_cell(given, data):
    z, share, apart, trust = given
    denoiser = Denoiser.fit(z, share, apart, reliability=trust)
    order = data.draw(st.permutations(range(len(z))))
    cells = np.array(order)[: data.draw(st.integers(1, len(z)))]
    whole = denoiser.denoised(z, share, apart)[cells]
    alone = denoiser.denoised(z[cells], share[cells], apart[cells])
    assert_allclose(alone, whole, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_stays(dtype):
    z, share = np.ones((4, 3), dtype=dtype), np.ones((4, 1), dtype=np.float32)
    denoiser = Denoiser.fit(z, share, np.zeros_like(z), reliability=np.full(3, 0.5))
    assert denoiser.denoised(z, share, np.zeros_like(z)).dtype == dtype


def test_a_state_without_cells_changes_nothing():
    z, share = np.arange(6.0).reshape(3, 2), np.array([[1.0, 0.0]] * 3)

    def moved(share):
        return Denoiser.fit(z, share, 0 * z, reliability=np.full(2, 0.5)).denoised(z, share, 0 * z)

    assert_allclose(moved(share), moved(share[:, :1]))


def test_places_are_nearer_to_the_true_ones_and_vary_as_much_within_states():
    rng = np.random.default_rng(0)
    kind, spread = rng.integers(0, 2, 20_000), np.array([1, 0.3])
    share = np.eye(2)[kind]
    true = share @ np.array([[0, 0], [5, 5]]) + rng.normal(0, spread, (len(kind), 2))
    seen = true + rng.normal(0, 0.6, true.shape)
    nothing = np.zeros_like(seen)

    def denoised(trust):
        return Denoiser.fit(seen, share, nothing, reliability=trust).denoised(seen, share, nothing)

    def error(trust):
        return np.square(denoised(trust) - true).mean()

    trust = spread**2 / (spread**2 + 0.6**2)
    assert error(trust) < 0.9 * min(error(np.ones(2)), error(np.zeros(2)))
    for state in (0, 1):
        of_state = denoised(trust)[kind == state]
        assert_allclose(of_state.std(axis=0), spread, rtol=0.03)


# How much of a component is noise


def factor_model(spread, *, noise=1.0, n_cells=4000, n_genes=400, samples=1, types=1, seed=0):
    """Cells whose genes follow some factors, with noise of their own, around samples' and types'.

    Returns x, codes, shares in the types, and each factor's share of its component's variance.
    """
    rng = np.random.default_rng(seed)
    spread = np.asarray(spread, dtype=float)
    loadings = np.linalg.qr(rng.normal(size=(n_genes, len(spread))))[0]
    codes, kind = rng.integers(0, samples, n_cells), rng.integers(0, types, n_cells)
    x = (rng.normal(size=(n_cells, len(spread))) * spread) @ loadings.T
    x += rng.normal(0, noise, x.shape)
    x += rng.normal(0, 2, (samples, n_genes))[codes] + rng.normal(0, 2, (types, n_genes))[kind]
    signal = spread**2 / np.maximum(spread**2 + noise**2, 1e-12)
    return x, codes, np.eye(types)[kind], signal


def found(x, codes, share, n_components, *, bridges=None, seed=0):
    n_samples = codes.max() + 1
    if bridges is None:  # samples apart but for their means
        means = np.array([x[codes == s].mean(axis=0) for s in range(n_samples)])
        bridges = AffineBridge(np.ones_like(means), means.mean(axis=0) - means)
    center = np.asarray(x.mean(axis=0)).ravel()
    rng = np.random.default_rng(seed)
    return reliability(
        x, codes, share, bridges=bridges, center=center, n_components=n_components, rng=rng
    )


@pytest.mark.parametrize("spread", [(9,), (3,), (2,), (6, 3), (8, 5, 3)])
@pytest.mark.parametrize("samples", [1, 3])
def test_reliability_is_the_share_of_the_variance_that_is_no_noise(spread, samples):
    x, codes, share, signal = factor_model(spread, samples=samples)
    assert_allclose(found(x, codes, share, len(spread)), signal, atol=0.05)


def test_what_differs_between_states_and_samples_does_not_count():
    x, codes, share, _ = factor_model((0,), samples=2, types=3)
    assert_allclose(found(x, codes, np.ones((len(x), 1)), 2), 1, atol=0.02)
    assert_allclose(found(x, codes, share, 2), 0, atol=0.1)


def test_noise_alone_is_not_reliable():
    x, codes, share, _ = factor_model(())
    assert_allclose(found(x, codes, share, 5), 0, atol=0.1)


def test_without_noise_all_is_reliable():
    x, codes, share, _ = factor_model((6, 3), noise=0)
    assert_allclose(found(x, codes, share, 2), 1, atol=0.03)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n_genes=st.integers(4, 60),
    spread=st.lists(st.floats(0, 8), min_size=1, max_size=3),
)
def test_reliability_is_not_overrated_though_genes_are_few(seed, n_genes, spread):
    # Test theory's alpha is a lower bound: what one gene alone does may be noise.
    spread = sorted(spread, reverse=True)
    x, codes, share, signal = factor_model(spread, n_genes=n_genes, seed=seed)
    assert (found(x, codes, share, len(spread), seed=seed) < signal + 0.15).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), n_cells=st.integers(2, 60), n_components=st.integers(1, 8))
def test_reliability_is_a_share_and_few_cells_are_left_alone(seed, n_cells, n_components):
    x, codes, share, _ = factor_model((2, 1), n_cells=n_cells, n_genes=10, samples=2, seed=seed)
    codes[:2] = [0, 1]
    alpha = found(x, codes, share, n_components, seed=seed)
    assert alpha.shape == (n_components,)
    assert ((alpha >= 0) & (alpha <= 1)).all()
    if n_cells // 2 <= n_components:
        assert_array_equal(alpha, 1)


def test_bridged_expression_counts_and_not_what_it_was():
    x, codes, share, _ = factor_model((4, 2), samples=2)
    plain = found(x, codes, share, 2)
    rng = np.random.default_rng(0)
    scale, shift = rng.uniform(0.5, 2, (2, 400)), rng.normal(size=(2, 400))
    before = (x - shift[codes]) / scale[codes]
    means = np.array([x[codes == s].mean(axis=0) for s in (0, 1)])
    bridges = AffineBridge(scale, shift + means.mean(axis=0) - means)
    rng = np.random.default_rng(0)
    alpha = reliability(
        before, codes, share, bridges=bridges, center=x.mean(axis=0), n_components=2, rng=rng
    )
    assert_allclose(alpha, plain, atol=1e-5)


def test_sparse_and_dense_agree():
    x, codes, share, _ = factor_model((9, 5), samples=2, types=2, n_cells=400)
    x = np.where(x > 0, x, 0)
    nothing = AffineBridge(np.ones((2, 400)), np.zeros((2, 400)))
    dense, thin = (
        found(form(x), codes, share, 3, bridges=nothing) for form in (np.asarray, sparse.csr_matrix)
    )
    assert_allclose(thin, dense, atol=1e-5)


def test_many_cells_are_judged_by_some(monkeypatch):
    x, codes, share, signal = factor_model((6, 3))
    monkeypatch.setattr("bioren.effects.denoising.MAX_CELLS", 1500)
    assert_allclose(found(x, codes, share, 2), signal, atol=0.06)


def test_cells_that_are_all_the_same_stay_finite():
    x, codes = np.full((40, 6), 3.0), np.arange(40) % 2
    assert np.isfinite(found(x, codes, np.ones((40, 1)), 3)).all()
