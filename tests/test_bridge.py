import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from bioren import AffineBridge, Moments
from bioren.bridge import clip_terms, kept_terms, renorm_terms, shrinkage

FREE = (math.inf, math.inf)

seeds = st.integers(0, 2**32 - 1)
strengths = st.floats(0, 1)
limits = st.tuples(st.floats(1, 10), st.floats(0, 10))


def populations(seed, n_genes=4, cells=(6, 9)):
    """Two populations of cells that differ in every gene's mean and spread."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(rng.normal(0, 3, n_genes), rng.uniform(0.2, 4, n_genes), (n, n_genes))
        for n in cells
    ]


def between(a, b, **options):
    return AffineBridge.between(Moments.of(a), Moments.of(b), **options)


def oracle(a, b, *, max_kept=(1.0, 0.0), max_removed=FREE, strength=1.0):
    """Return a carried to b by the definition of r and d, value by value."""
    y = np.empty_like(a)
    for g in range(a.shape[1]):
        mean_a, std_a, mean_b, std_b = a[:, g].mean(), a[:, g].std(), b[:, g].mean(), b[:, g].std()
        r, d = std_a / std_b, (mean_a - mean_b) / std_b
        excess_log_r = math.log(r) - min(
            max(math.log(r), -math.log(max_kept[0])), math.log(max_kept[0])
        )
        excess_d = d - min(max(d, -max_kept[1]), max_kept[1])
        most = math.log(max_removed[0])
        log_r_removed = min(max(strength * excess_log_r, -most), most)
        d_removed = min(max(strength * excess_d, -max_removed[1]), max_removed[1])
        z = (a[:, g] - mean_a) / std_a
        y[:, g] = mean_b + std_b * (r / math.exp(log_r_removed) * z + d - d_removed)
    return y


# What is kept and what is removed


@settings(max_examples=60, deadline=None)
@given(seed=seeds, max_kept=limits, max_removed=limits, strength=strengths)
def test_the_bridge_is_its_definition(seed, max_kept, max_removed, strength):
    a, b = populations(seed)
    options = {"max_kept": max_kept, "max_removed": max_removed, "strength": strength}
    assert_allclose(between(a, b, **options).apply(a), oracle(a, b, **options), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_nothing_kept_gives_the_targets_mean_and_spread(seed):
    a, b = populations(seed)
    for bridge in (between(a, b), between(a, b, max_kept=(1, 0))):
        carried = bridge.apply(a)
        assert_allclose(carried.mean(axis=0), b.mean(axis=0), rtol=1e-9, atol=1e-12)
        assert_allclose(carried.std(axis=0), b.std(axis=0), rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, offset=st.sampled_from([0, 1e6]))
def test_everything_kept_is_exactly_the_identity(seed, offset):
    a, b = populations(seed)
    a += offset
    for options in ({"max_kept": FREE}, {"strength": 0.0}, {"max_removed": (1, 0)}):
        bridge = between(a, b, **options)
        assert_array_equal(bridge.scale, 1)
        assert_array_equal(bridge.shift, 0)
        assert_array_equal(bridge.apply(a), a)


def test_a_sample_equal_to_the_reference_is_left_alone():
    a, _ = populations(0)
    moments = Moments.of(a)
    r, d = renorm_terms(moments.mean, moments.std(), moments.mean, moments.std())
    assert_array_equal(r, 1)
    assert_array_equal(d, 0)
    bridge = between(a, a)
    assert_array_equal(bridge.scale, 1)
    assert_array_equal(bridge.shift, 0)


def removed(seed, **options):
    """How much is taken away, as (|log r|, |d|) per gene."""
    a, b = (Moments.of(x) for x in populations(seed))
    r, d = renorm_terms(a.mean, a.std(), b.mean, b.std())
    r_kept, d_kept = kept_terms(r, d, **options)
    # Never past the reference, and never away from it.
    assert (np.log(r_kept) * np.log(r) >= -1e-12).all()
    assert (d_kept * d >= -1e-12).all()
    return np.abs(np.log(r / r_kept)), np.abs(d - d_kept)


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    fixed=st.fixed_dictionaries({"max_kept": limits, "max_removed": limits, "strength": strengths}),
    name=st.sampled_from(["max_kept", "max_removed", "strength"]),
    part=st.integers(0, 1),
    values=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)
def test_more_of_an_option_never_turns_its_effect_around(seed, fixed, name, part, values):
    def with_value(share):
        if name == "strength":
            return fixed | {"strength": share}
        pair = list(fixed[name])
        pair[part] = (1, 0)[part] + 9 * share
        return fixed | {name: tuple(pair)}

    less, more = (removed(seed, **with_value(share)) for share in values)
    less, more = (more, less) if name == "max_kept" else (less, more)
    for small, large in zip(less, more, strict=True):
        assert (small <= large + 1e-12).all()


@settings(max_examples=40, deadline=None)
@given(seed=seeds, guard=limits, max_kept=limits, strength=strengths)
def test_no_more_is_removed_than_the_guard_allows(seed, guard, max_kept, strength):
    log_r, d = removed(seed, max_removed=guard, max_kept=max_kept, strength=strength)
    assert (log_r <= math.log(guard[0]) + 1e-12).all()
    assert (d <= guard[1] + 1e-12).all()


def test_the_limits_bind():
    log_r, d = removed(0, max_removed=(1.1, 0.1))
    assert_allclose(log_r.max(), math.log(1.1))
    assert_allclose(d.max(), 0.1)


def test_half_the_strength_is_half_the_way():
    whole, half = removed(1), removed(1, strength=0.5)
    for all_of_it, some in zip(whole, half, strict=True):
        assert_allclose(some, all_of_it / 2)


def test_each_gene_may_have_its_strength():
    a, b = populations(2)
    strength = np.array([0, 0.3, 0.7, 1])
    found = between(a, b, strength=strength)
    for gene, one in enumerate(strength):
        alone = between(a[:, [gene]], b[:, [gene]], strength=float(one))
        assert_allclose(found.scale[gene], alone.scale[0])
        assert_allclose(found.shift[gene], alone.shift[0], atol=1e-12)


# There and back


@settings(max_examples=40, deadline=None)
@given(seed=seeds, max_kept=limits, strength=strengths)
def test_inverting_undoes(seed, max_kept, strength):
    a, b = populations(seed)
    bridge = between(a, b, max_kept=max_kept, strength=strength)
    assert_allclose(bridge.invert().apply(bridge.apply(a)), a, atol=1e-9)
    assert_allclose(bridge.apply(bridge.invert().apply(a)), a, atol=1e-9)


def test_nothing_leads_back_from_scale_zero():
    bridge = AffineBridge(np.array([1.0, 0.0, 0.0]), np.zeros(3))
    with pytest.raises(ValueError, match="2 features have scale 0"):
        bridge.invert()


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_composing_is_one_after_the_other(seed):
    a, b, c = populations(seed, cells=(4, 5, 6))
    first, second = between(a, b), between(b, c, strength=0.5)
    assert_allclose(first.compose(second).apply(a), second.apply(first.apply(a)), atol=1e-9)
    home = first.compose(first.invert())
    assert_allclose(home.scale, 1)
    assert_allclose(home.shift, 0, atol=1e-9)


def test_one_bridge_per_sample():
    a, b, target = populations(3, cells=(5, 5, 8))
    samples = Moments.by_group(np.vstack([a, b]), np.repeat([0, 1], 5), 2)
    bridges = AffineBridge.between(samples, Moments.of(target))
    assert bridges.scale.shape == (2, 4)
    assert_allclose(bridges[1].apply(b), between(b, target).apply(b))


# Features without spread


@pytest.mark.parametrize("constant", ["source", "target", "both"])
@pytest.mark.parametrize("options", [{}, {"max_kept": FREE}, {"max_removed": (2, 1)}])
def test_a_constant_gene_is_shifted_and_never_scaled(constant, options):
    a, b = populations(4)
    if constant in ("source", "both"):
        a[:, 0] = 5
    if constant in ("target", "both"):
        b[:, 0] = -3
    bridge = between(a, b, **options)
    assert np.isfinite(bridge.scale).all()
    assert np.isfinite(bridge.shift).all()
    assert bridge.scale[0] == 1
    if not options:
        assert_allclose(bridge.apply(a)[:, 0].mean(), b[:, 0].mean())
    others = between(a[:, 1:], b[:, 1:], **options)
    assert_allclose(bridge.scale[1:], others.scale)
    assert_allclose(bridge.shift[1:], others.shift)


# Kinds of arrays


@settings(max_examples=25, deadline=None)
@given(seed=seeds, max_kept=limits, max_removed=limits, strength=strengths)
def test_numpy_and_torch_agree(seed, max_kept, max_removed, strength):
    a, b = populations(seed)
    options = {"max_kept": max_kept, "max_removed": max_removed, "strength": strength}
    here = between(a, b, **options)
    there = between(torch.as_tensor(a), torch.as_tensor(b), **options)
    assert isinstance(there.scale, torch.Tensor)
    assert_allclose(there.scale, here.scale, rtol=1e-9)
    assert_allclose(there.shift, here.shift, rtol=1e-9, atol=1e-9)
    assert_allclose(there.apply(torch.as_tensor(a)), here.apply(a), rtol=1e-9, atol=1e-9)
    assert_allclose(there.invert().shift, here.invert().shift, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_stays(dtype):
    a, b = populations(5)
    bridge = between(a, b)
    expected = bridge.apply(a)
    assert bridge.apply(a.astype(dtype)).dtype == dtype
    assert_allclose(bridge.apply(a.astype(dtype)), expected, rtol=0.1, atol=0.1)
    tensor = torch.as_tensor(a.astype(dtype))
    on_tensors = between(torch.as_tensor(a), torch.as_tensor(b)).apply(tensor)
    assert on_tensors.dtype == tensor.dtype


def test_single_precision_values_pass_in_double_precision():
    # 1000 is carried to 0.1: in single precision the two terms cancel to three digits.
    x = np.array([[1000.1]], dtype=np.float32)
    bridge = AffineBridge(np.array([1.0]), np.array([-1000.0]))
    exact = float(x[0, 0]) - 1000
    assert_allclose(bridge.apply(x), exact, rtol=1e-7)
    third = AffineBridge(np.array([1 / 3]), np.array([-1000 / 3]))
    assert_allclose(third.apply(x), exact / 3, rtol=1e-6)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_whole_numbers_become_floating_point(form):
    x = form(np.array([[1, 0], [0, 3]]))
    carried = AffineBridge(np.array([0.5, 2.0]), np.zeros(2)).apply(x)
    assert carried.dtype == np.float64
    assert_array_equal(
        carried.toarray() if sparse.issparse(carried) else carried, [[0.5, 0], [0, 6]]
    )


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_sparse_stays_sparse_without_a_shift(form):
    dense = np.array([[1, 0, 2], [0, 0, 3]], dtype=np.float32)
    scale = np.array([0.5, 3.0, 2.0])
    carried = AffineBridge(scale, np.zeros(3)).apply(form(dense))
    assert sparse.issparse(carried)
    assert carried.format == form(dense).format
    assert carried.nnz == 3
    assert carried.dtype == np.float32
    assert_allclose(carried.toarray(), dense * scale)


def test_sparse_refuses_a_shift():
    x = sparse.csr_matrix(np.eye(2))
    with pytest.raises(TypeError, match="every zero"):
        AffineBridge(np.ones(2), np.array([0, 1e-9])).apply(x)


def test_a_bridge_that_removes_nothing_leaves_sparse_alone():
    a, b = populations(6)
    x = sparse.csr_matrix(a)
    assert (between(a, b, strength=0).apply(x) != x).nnz == 0


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_the_input_is_never_changed(form):
    a, _ = populations(7)
    x = form(a)
    AffineBridge(np.full(4, 2.0), np.zeros(4)).apply(x)
    assert_array_equal(x.toarray() if sparse.issparse(x) else x, a)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.5}, r"strength must lie in \[0, 1\], received 1\.5"),
        ({"strength": -0.1}, "strength"),
        ({"strength": math.nan}, "strength"),
        ({"strength": np.array([0.5, 2])}, "strength"),
        ({"max_kept": (0.5, 1)}, r"max_kept must be .* received \(0\.5, 1\)"),
        ({"max_kept": (2, -1)}, "max_kept"),
        ({"max_removed": (math.nan, 1)}, "max_removed"),
    ],
)
def test_options_out_of_range(options, message):
    a, b = populations(8)
    with pytest.raises(ValueError, match=message):
        between(a, b, **options)


@pytest.mark.parametrize("empty", ["source", "target"])
def test_the_bridge_needs_cells_on_either_side(empty):
    a, b = populations(9)
    a, b = (a[:0], b) if empty == "source" else (a, b[:0])
    with pytest.raises(ValueError, match=f"{empty} holds no cells"):
        between(a, b)


@pytest.mark.parametrize("form", [np.asarray, torch.as_tensor])
def test_what_either_side_has_not_measured_is_left(form):
    a, b = populations(10)
    a[1:3, 0] = a[:, 1] = b[:, 2] = np.nan
    bridge = between(form(a), form(b))
    scale, shift = np.asarray(bridge.scale), np.asarray(bridge.shift)
    assert_allclose(scale[1:3], 1)
    assert_allclose(shift[1:3], 0)
    moved = bridge.apply(a) if form is np.asarray else bridge.apply(form(a)).numpy()
    for gene in (0, 3):
        assert_allclose(np.nanmean(moved[:, gene]), b[:, gene].mean())
        assert_allclose(np.nanstd(moved[:, gene]), b[:, gene].std())
    assert_array_equal(np.isnan(moved), np.isnan(a))
    complete = between(form(np.delete(a, 1, axis=1)), form(np.delete(b, 1, axis=1)))
    assert_allclose(np.asarray(complete.scale), np.delete(scale, 1))


# Shrinkage


def test_clipping_is_symmetric_on_the_logarithm():
    r, d = clip_terms(np.array([0.1, 1.5, 9]), np.array([-7.0, 1, 7]), 2.0, 5.0)
    assert_array_equal(r, [0.5, 1.5, 2])
    assert_array_equal(d, [-5, 1, 5])


def test_effects_that_are_noise_are_not_trusted_and_strong_ones_are():
    rng = np.random.default_rng(0)
    error = rng.uniform(0.5, 2, 5000)
    noise = rng.normal(0, error)
    assert shrinkage(noise, error).mean() < 0.1
    assert shrinkage(noise + rng.normal(0, 20, 5000), error).min() > 0.95


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_trust_is_a_share_that_falls_with_the_error(seed):
    rng = np.random.default_rng(seed)
    effect, error = rng.normal(0, 2, (3, 50)), rng.exponential(1, (3, 50))
    trust = shrinkage(effect, error)
    assert ((trust >= 0) & (trust <= 1)).all()
    for row in range(3):  # rows do not know of each other
        assert_allclose(trust[row], shrinkage(effect[row], error[row]))
        assert (np.diff(trust[row][np.argsort(error[row])]) <= 1e-12).all()


def test_shrinkage_recovers_the_variance_of_the_effects():
    rng = np.random.default_rng(1)
    trust = shrinkage(rng.normal(0, 1.5, 20_000) + rng.normal(0, 1, 20_000), np.ones(20_000))
    assert_allclose(trust, 1.5**2 / (1.5**2 + 1), rtol=0.05)


def test_no_effect_without_error_is_finite():
    assert_array_equal(shrinkage(np.zeros(3), np.zeros(3)), 1)


def test_a_gene_of_which_nothing_is_known_tells_nothing_of_the_others():
    rng = np.random.default_rng(3)
    effect, error = rng.normal(0, 2, (2, 50)), rng.uniform(0.5, 1, (2, 50))
    error[0, :9] = error[1] = np.inf
    effect[~np.isfinite(error)] = 0
    trust = shrinkage(effect, error)
    assert_allclose(trust[0, 9:], shrinkage(effect[0, 9:], error[0, 9:]))
    assert_array_equal(trust[0, :9], 0)
    assert_array_equal(trust[1], 0)
