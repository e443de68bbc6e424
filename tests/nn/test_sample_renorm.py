import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn import renorm_oracle as oracle
from numpy.testing import assert_allclose

from bioren.arrays.moments import Moments
from bioren.bridge import AffineBridge
from bioren.nn import SampleRenorm1d
from bioren.nn.functional import SampleStatistics, batch_renorm, sample_renorm

FREE = (math.inf, math.inf)
PRIOR = 4  # degrees of freedom of the prior variance

kept = st.sampled_from([(1.0, 0.0), (1.5, 0.3), (2.0, 5.0), FREE])
seeds = st.integers(0, 2**32 - 1)


def draw(seed, samples=3, features=2, cells=12):
    """Return cells, their samples, and moments (means, variances, mean, var) of other cells."""
    rng = np.random.default_rng(seed)
    sample = rng.integers(samples, size=cells)
    x = rng.normal(rng.normal(0, 2, (samples, features))[sample], 1.5)
    moments = (
        rng.normal(size=(samples, features)),
        rng.uniform(0.3, 3, (samples, features)),
        rng.normal(size=features),
        rng.uniform(0.3, 3, features),
    )
    return x, sample, moments


def layer_with(moments, n_seen=50, **options):
    """Return a float64 layer with these moments, all samples seen."""
    means, variances, mean, var = moments
    samples, features = means.shape
    layer = SampleRenorm1d(features, samples, dtype=torch.float64, **options)
    seen = Moments(np.full(samples, n_seen), means, variances * n_seen)
    layer.load_moments(seen, Moments(np.array(100.0), mean, var * 100))
    return layer


def state_of(layer):
    return copy.deepcopy(layer.state_dict())


def assert_same_state(layer, before):
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


# Values


@settings(max_examples=40, deadline=None)
@given(seed=seeds, max_kept=kept, strength=st.floats(0, 1))
def test_evaluation_cell_by_cell(seed, max_kept, strength):
    x, sample, moments = draw(seed)
    layer = layer_with(moments, eps=1e-3, max_kept=max_kept, mixing=1 - strength).eval()
    y = layer(torch.tensor(x), torch.tensor(sample))
    expected = oracle.sample_renorm_eval(
        x, sample, *moments, max_kept=max_kept, strength=strength, eps=1e-3
    )
    assert_allclose(y.detach(), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    cells=st.integers(1, 12),
    max_kept=kept,
    limits=st.sampled_from([(1.0, 0.0), (1.3, 0.4), (3.0, 5.0), FREE]),
)
def test_training_sample_by_sample(seed, cells, max_kept, limits):
    x, sample, moments = draw(seed, cells=cells)
    layer = layer_with(moments, eps=1e-3, max_kept=max_kept, mixing=0.3, limits=limits)
    y = layer(torch.tensor(x), torch.tensor(sample))
    expected = oracle.sample_renorm_train(
        x,
        sample,
        *moments,
        r_max=limits[0],
        d_max=limits[1],
        max_kept=max_kept,
        strength=0.7,
        eps=1e-3,
    )
    assert_allclose(y.detach(), expected, rtol=1e-9, atol=1e-9)


def test_weight_and_bias_come_last():
    x, sample, moments = draw(0)
    plain, affine = layer_with(moments, affine=False), layer_with(moments)
    with torch.no_grad():
        affine.weight.copy_(torch.tensor([2.0, -0.5]))
        affine.bias.copy_(torch.tensor([1.0, 3.0]))
    x, sample = torch.tensor(x), torch.tensor(sample)
    for training in (True, False):
        expected = plain.train(training)(x, sample) * affine.weight + affine.bias
        torch.testing.assert_close(affine.train(training)(x, sample), expected)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, cells=st.integers(1, 12), max_kept=kept)
def test_unclipped_training_is_evaluation_on_the_statistics_before(seed, cells, max_kept):
    x, sample, moments = draw(seed, cells=cells)
    layer = layer_with(moments, max_kept=max_kept, limits=FREE)
    x, sample = torch.tensor(x), torch.tensor(sample)
    expected = layer.eval()(x, sample)
    torch.testing.assert_close(layer.train()(x, sample), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("training", [True, False])
def test_all_kept_is_normalization_by_the_population(training):
    x, sample, moments = draw(1)
    layer = layer_with(moments, max_kept=FREE, limits=FREE).train(training)
    y = layer(torch.tensor(x), torch.tensor(sample))
    assert_allclose(y.detach(), (x - moments[2]) / np.sqrt(moments[3] + 1e-5), rtol=1e-9)


def test_nothing_kept_gives_every_sample_mean_0_and_deviation_1():
    x, sample, _ = draw(2, cells=60)
    layer = SampleRenorm1d(2, 3, eps=0, dtype=torch.float64)
    layer.load_moments(Moments.by_group(x, sample, 3), Moments.of(x))
    y = layer.eval()(torch.tensor(x), torch.tensor(sample)).detach().numpy()
    for s in range(3):
        assert_allclose(y[sample == s].mean(axis=0), 0, atol=1e-12)
        assert_allclose(y[sample == s].std(axis=0), 1, rtol=1e-12)


# Independence


def test_evaluation_changes_nothing_and_does_not_see_the_other_cells():
    x, sample, moments = draw(3)
    layer = layer_with(moments).eval()
    before = state_of(layer)
    x, sample = torch.tensor(x), torch.tensor(sample)
    whole = layer(x, sample)
    for cell in range(len(x)):
        one = slice(cell, cell + 1)
        torch.testing.assert_close(layer(x[one], sample[one]), whole[one], rtol=0, atol=1e-12)
    assert_same_state(layer, before)


def test_training_does_not_see_the_cells_of_other_samples():
    x, sample, moments = draw(4)
    mine = sample == 0
    together = layer_with(moments)(torch.tensor(x), torch.tensor(sample))
    x[~mine] = np.nan
    among_nans = layer_with(moments)(torch.tensor(x), torch.tensor(sample))
    torch.testing.assert_close(among_nans[mine], together[mine], rtol=0, atol=0)


def test_order_of_cells_does_not_matter():
    x, sample, moments = draw(5)
    order = np.random.default_rng(0).permutation(len(x))
    a, b = layer_with(moments), layer_with(moments)
    y = a(torch.tensor(x), torch.tensor(sample))
    z = b(torch.tensor(x[order]), torch.tensor(sample[order]))
    torch.testing.assert_close(z, y[order])
    torch.testing.assert_close(a.state_dict(), b.state_dict())


# Gradients


@pytest.mark.parametrize("limits", [(1.0, 0.0), (1.3, 0.4), FREE])
def test_gradients_are_those_of_batch_renorm_in_each_sample(limits):
    x, _, moments = draw(6, cells=15)
    sample = np.arange(15) % 3
    layer = layer_with(moments, limits=limits)
    dy = np.random.default_rng(0).normal(size=x.shape)
    a = torch.tensor(x, requires_grad=True)
    layer(a, torch.tensor(sample)).backward(torch.tensor(dy))
    for s in range(3):
        b = torch.tensor(x[sample == s], requires_grad=True)
        mean, var = torch.tensor(moments[0][s]), torch.tensor(moments[1][s])
        batch_renorm(b, mean, var, r_max=limits[0], d_max=limits[1]).backward(
            torch.tensor(dy[sample == s])
        )
        torch.testing.assert_close(a.grad[sample == s], b.grad)


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training):
    x, sample, moments = draw(7, cells=9)
    sample[sample == 2] = 0
    sample[0] = 2  # a lone cell
    buffers = layer_with(moments).statistics

    def function(x, weight, bias):  # limits (1, 0) hold r and d fixed
        copies = SampleStatistics(*(buffer.clone() for buffer in buffers))
        return sample_renorm(
            x, torch.tensor(sample), copies, weight, bias, training,
            max_kept=(1.5, 0.3), r_max=1.0, d_max=0.0,
        )  # fmt: skip

    inputs = [torch.tensor(x), torch.tensor([2.0, -0.5]), torch.tensor([1.0, 3.0])]
    inputs = [leaf.double().requires_grad_() for leaf in inputs]
    assert torch.autograd.gradcheck(function, inputs)


# One cell


@pytest.mark.parametrize("limits", [(1.0, 0.0), (3.0, 5.0)])
def test_lone_cell_is_normalized_by_the_moving_statistics_and_keeps_its_gradient(limits):
    x, _, moments = draw(8, cells=3)
    x[0] = 100  # far beyond d_max: a clip would show
    layer = layer_with(moments, max_kept=(1.5, 0.3), limits=limits)
    a, b = (torch.tensor(x, requires_grad=True) for _ in range(2))
    sample = torch.tensor([0, 1, 2])
    expected = layer.eval()(b, sample)
    expected.sum().backward()
    y = layer.train()(a, sample)
    y.sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


def test_lone_cell_of_a_new_sample_has_the_spread_of_the_others():
    rng = np.random.default_rng(0)
    crowd = rng.normal(5, 0.01, (40, 2))
    x = torch.tensor(np.vstack([crowd, [[9.0, -9.0]]]))
    sample = torch.tensor([0] * 20 + [1] * 20 + [2])
    layer = SampleRenorm1d(2, 3, dtype=torch.float64)
    y = layer(x, sample)
    pooled = np.mean([crowd[:20].var(axis=0, ddof=1), crowd[20:].var(axis=0, ddof=1)], axis=0)
    assert_allclose(layer.sample_var[2], pooled, rtol=1e-9)
    assert_allclose(layer.sample_mean[2], [9, -9])
    assert_allclose(y[2:3].isfinite(), True)


def test_prior_is_shared_with_the_samples_known_before():
    x, _, moments = draw(9, cells=3)
    layer = layer_with(moments)
    layer.sample_cells[2] = 0
    layer(torch.tensor(x), torch.tensor([0, 0, 2]))
    within_batch = x[:2].var(axis=0, ddof=1)  # one degree of freedom
    expected = (within_batch + PRIOR * moments[1][:2].mean(axis=0)) / (1 + PRIOR)
    assert_allclose(layer.sample_var[2], expected, rtol=1e-9)


def test_first_batch_of_lone_cells_falls_back_on_the_population():
    layer = SampleRenorm1d(2, 3, dtype=torch.float64)
    layer.running_var.fill_(7.0)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    y = layer(x, torch.tensor([0, 2]))
    assert_allclose(layer.sample_var, [[7, 7], [1, 1], [7, 7]])
    assert_allclose(y.detach(), 0)  # each lies at all that is known of its sample's mean


def test_few_cells_move_the_first_variance_little():
    x = torch.tensor([[0.0], [0.0], [-1.0], [1.0], [3.0]], dtype=torch.float64)
    layer = SampleRenorm1d(1, 2, dtype=torch.float64)
    layer(x, torch.tensor([0, 0, 1, 1, 1]))
    prior = (0 + 8) / (1 + 2)
    assert_allclose(layer.sample_var[:, 0], [PRIOR * prior / 5, (PRIOR * prior + 8) / 6])


def test_first_batch_far_from_0_1_is_normalized_all_the_same():
    x = torch.randn(64, 2, dtype=torch.float64) * 50 + 200
    y = SampleRenorm1d(2, 2, max_kept=FREE, dtype=torch.float64)(x, torch.arange(64) % 2)
    assert_allclose(y.detach().mean(dim=0), 0, atol=0.1)
    assert_allclose(y.detach().std(dim=0), 1, rtol=0.1)


# What is remembered


@settings(max_examples=40, deadline=None)
@given(seed=seeds, cuts=st.lists(st.integers(2, 19), max_size=6))
def test_merging_minibatches_equals_seeing_all_cells_at_once(seed, cuts):
    x, sample, _ = draw(seed, samples=2, cells=20)
    sample[:2] = 0, 1
    layer = SampleRenorm1d(2, 2, momentum=None, dtype=torch.float64)
    for start, stop in zip([0, 2, *sorted(cuts)], [2, *sorted(cuts), 20], strict=True):
        layer(torch.tensor(x[start:stop]), torch.tensor(sample[start:stop]))
    for s in range(2):
        cells = x[sample == s]
        # Both samples begin with a lone cell, so that the prior is the initial variance, 1.
        m2 = ((cells - cells.mean(axis=0)) ** 2).sum(axis=0)
        assert_allclose(layer.sample_mean[s], cells.mean(axis=0), rtol=1e-9, atol=1e-9)
        assert_allclose(layer.sample_var[s], (PRIOR + m2) / (PRIOR + len(cells) - 1), rtol=1e-9)
        assert layer.sample_cells[s] == len(cells)


def test_momentum_is_the_least_weight_of_a_minibatch():
    x, _, moments = draw(10, cells=4)
    layer = layer_with(moments, n_seen=10**9, momentum=0.25)
    layer(torch.tensor(x), torch.tensor([0, 0, 0, 1]))
    assert_allclose(layer.sample_mean[0], 0.75 * moments[0][0] + 0.25 * x[:3].mean(axis=0))
    assert_allclose(layer.sample_mean[1], 0.75 * moments[0][1] + 0.25 * x[3])
    assert_allclose(layer.sample_mean[2], moments[0][2])
    assert_allclose(layer.sample_var[2], moments[1][2])


def test_single_cells_do_not_wear_the_variance_down():
    rng = np.random.default_rng(0)
    layer = SampleRenorm1d(100, 1, momentum=0.05, dtype=torch.float64)
    for _ in range(150):
        layer(torch.tensor(rng.normal(3, 2, (1, 100))), torch.tensor([0]))
    assert float(layer.sample_var.mean()) == pytest.approx(4, rel=0.08)
    assert float(layer.sample_mean.mean()) == pytest.approx(3, rel=0.04)


def test_each_sample_weighs_the_same_in_the_population_and_unseen_ones_nothing():
    x, _, _ = draw(11, cells=40)
    layer = SampleRenorm1d(2, 4, dtype=torch.float64)
    layer(torch.tensor(x), torch.tensor([0] * 3 + [1] * 36 + [3]))
    means, variances = layer.sample_mean[[0, 1, 3]], layer.sample_var[[0, 1, 3]]
    assert_allclose(layer.running_mean, means.mean(dim=0))
    expected = variances.mean(dim=0) + means.var(dim=0, correction=0)
    assert_allclose(layer.running_var, expected)


def test_sample_never_seen_counts_as_the_population():
    x, sample, moments = draw(12)
    layer = layer_with(moments).eval()
    layer.sample_cells[1] = 0
    y = layer(torch.tensor(x), torch.full_like(torch.tensor(sample), 1))
    assert_allclose(y.detach(), (x - moments[2]) / np.sqrt(moments[3] + 1e-5), rtol=1e-9)
    assert_allclose(layer.bridge().scale[1], 1)
    assert_allclose(layer.bridge().shift[1], 0, atol=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
@pytest.mark.parametrize("trained", [True, False])
def test_batch_that_is_not_finite_leaves_the_statistics_alone(value, trained):
    layer = SampleRenorm1d(2, 3)
    if trained:
        layer(torch.randn(9, 2), torch.arange(9) % 3)
    before = [buffer.clone() for buffer in layer.statistics]
    x = torch.randn(9, 2)
    x[3, 1] = value
    layer(x, torch.arange(9) % 3)
    for old, new in zip(before, layer.statistics, strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("training", [True, False])
def test_no_cells(training):
    layer = SampleRenorm1d(2, 3).train(training)
    before = state_of(layer)
    x = torch.zeros(0, 2, requires_grad=True)
    y = layer(x, torch.zeros(0, dtype=torch.int64))
    y.sum().backward()
    assert y.shape == (0, 2)
    assert_same_state(layer, before)


# Numbers that break formulas


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("max_kept", [(1.0, 0.0), FREE])
def test_constant_feature_is_finite_with_finite_gradients(eps, max_kept):
    layer = SampleRenorm1d(3, 3, eps=eps, max_kept=max_kept, dtype=torch.float64)
    sample = torch.tensor([0, 0, 0, 1, 1, 2])
    constant, zero = torch.full((6,), 7.0), torch.zeros(6)
    some = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 0.0])  # constant in two of three samples
    x = torch.stack([constant, zero, some], dim=1).double().requires_grad_()
    for training in (True, True, False):
        y = layer.train(training)(x, sample)
        y.square().sum().backward()
        assert y.isfinite().all()
        assert x.grad.isfinite().all()
    assert all(buffer.isfinite().all() for buffer in layer.statistics)
    torch.testing.assert_close(layer.inverse(y, sample), x)
    assert layer.to_reference(x, sample).isfinite().all()


def test_large_mean_small_spread_in_single_precision():
    x = torch.randn(4096, 2) * 0.1 + 1000
    sample = torch.arange(4096) % 2
    layer = SampleRenorm1d(2, 2, affine=False)
    for training in (True, False):
        y = layer.train(training)(x, sample)
        torch.testing.assert_close(y.mean(0), torch.zeros(2), rtol=0, atol=5e-3)
        torch.testing.assert_close(y.std(0), torch.ones(2), rtol=5e-3, atol=0)
    torch.testing.assert_close(layer.sample_var, torch.full((2, 2), 0.01), rtol=0.1, atol=0)


def test_sums_of_many_large_values_lose_no_digits():
    x = torch.randn(200_000, 1) * 0.01 + 1000
    layer = SampleRenorm1d(1, 1)
    layer(x, torch.zeros(len(x), dtype=torch.int64))
    exact = x.double()
    assert_allclose(layer.sample_mean[0], exact.mean(dim=0), rtol=0, atol=1e-4)  # 2 units
    assert_allclose(layer.sample_var[0], exact.var(dim=0), rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("whole", [True, False], ids=["layer in half", "input in half"])
def test_half_precision_has_statistics_in_single(dtype, whole):
    x = (torch.randn(60, 2) * 100 + 1000).to(dtype).requires_grad_()
    sample = torch.arange(60) % 3
    layer = SampleRenorm1d(2, 3, dtype=dtype if whole else None)
    single = SampleRenorm1d(2, 3)
    y, expected = layer(x, sample), single(x.detach().float(), sample)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)
    assert_allclose(layer.sample_var.float(), single.sample_var, rtol=0.01 if whole else 1e-6)
    assert layer.eval().inverse(layer(x, sample), sample).dtype == dtype
    assert layer.to_reference(x, sample).dtype == dtype


# The bridge


@settings(max_examples=30, deadline=None)
@given(seed=seeds, max_kept=kept, strength=st.floats(0, 1), flat=st.booleans())
def test_bridge_is_the_bridge_between_the_loaded_moments(seed, max_kept, strength, flat):
    x, sample, _ = draw(seed, features=4, cells=30)
    sample[:3] = 0, 1, 2
    if flat:
        x[sample == 1, 0] = 2.0  # no spread in one sample
        x[:, 1] = 3.0  # nor anywhere
    samples, population = Moments.by_group(x, sample, 3), Moments.of(x)
    layer = SampleRenorm1d(4, 3, eps=0, max_kept=max_kept, mixing=1 - strength)
    layer.load_moments(samples, population)
    expected = AffineBridge.between(samples, population, max_kept=max_kept, strength=strength)

    values, codes = torch.tensor(x, dtype=torch.float32), torch.tensor(sample)
    carried = layer.bridge()[codes].apply(values)
    assert_allclose(carried, expected[sample].apply(x), rtol=1e-4, atol=1e-4)
    assert_allclose(layer.to_reference(values, codes), carried, rtol=0, atol=0)

    # The normalized output is the same on another scale.
    if not flat:
        z = layer.eval()(values, codes).detach().numpy()
        assert_allclose(z * population.std() + population.mean, carried, rtol=1e-3, atol=1e-3)


def test_loaded_moments_are_exact_and_survive_evaluation():
    x, sample, _ = draw(13, cells=50)
    samples, population = Moments.by_group(x, sample, 3), Moments.of(x)
    layer = SampleRenorm1d(2, 3, dtype=torch.float64)
    layer.load_moments(samples, population)
    layer.eval()(torch.tensor(x), torch.tensor(sample))
    assert_allclose(layer.sample_mean, samples.mean, rtol=0)
    assert_allclose(layer.sample_var, samples.var(), rtol=0)
    assert_allclose(layer.sample_cells, samples.count)
    assert_allclose(layer.running_mean, population.mean, rtol=0)
    assert_allclose(layer.running_var, population.var(), rtol=0)


def test_loading_moments_names_what_is_wrong():
    x, sample, _ = draw(14)
    samples, population = Moments.by_group(x, sample, 3), Moments.of(x)
    layer = SampleRenorm1d(2, 3)
    before = state_of(layer)
    with pytest.raises(ValueError, match=r"sample_mean of shape \(3, 2\), received \(2, 2\)"):
        layer.load_moments(samples[:2], population)
    with pytest.raises(ValueError, match="population holds no cells"):
        layer.load_moments(samples, Moments.empty((), 2))
    with pytest.raises(ValueError, match="running_mean holds a value that is not finite"):
        layer.load_moments(
            samples, Moments(population.count, population.mean * 1e200, population.m2)
        )
    assert_same_state(layer, before)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, max_kept=kept, strength=st.floats(0, 1))
def test_inverse_undoes_evaluation(seed, max_kept, strength):
    x, sample, moments = draw(seed)
    layer = layer_with(moments, max_kept=max_kept, mixing=1 - strength).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([2.0, -0.5]))
        layer.bias.copy_(torch.tensor([1.0, 3.0]))
    x, sample = torch.tensor(x), torch.tensor(sample)
    y = layer(x, sample)
    torch.testing.assert_close(layer.inverse(y, sample), x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.train().inverse(y, sample), x, rtol=1e-9, atol=1e-9)
    back = layer.bridge().invert()[sample].apply(layer.to_reference(x, sample))
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)


def test_no_inverse_of_a_weight_of_zero():
    layer = SampleRenorm1d(2, 3)
    with torch.no_grad():
        layer.weight[1] = 0
    with pytest.raises(ValueError, match="1 features have weight 0"):
        layer.inverse(torch.zeros(1, 2), torch.tensor([0]))


# The layer as an object


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_works_and_is_independent(copied):
    layer = SampleRenorm1d(2, 3)
    x, sample = torch.randn(9, 2), torch.arange(9) % 3
    layer(x, sample)
    twin, before = copied(layer), state_of(layer)
    y = twin(x + 1, sample)
    assert_same_state(layer, before)
    assert torch.equal(layer(x + 1, sample), y)


def test_state_dict_carries_everything():
    layer, fresh = SampleRenorm1d(2, 3), SampleRenorm1d(2, 3)
    x, sample = torch.randn(9, 2), torch.arange(9) % 3
    layer(x, sample)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.eval()(x, sample), layer.eval()(x, sample))
    assert fresh.num_batches_tracked == 1
    fresh.reset_parameters()
    assert_same_state(fresh, SampleRenorm1d(2, 3).state_dict())


def test_schedule_reads_the_number_of_batches():
    steps = []

    def schedule(step):
        steps.append(int(step))
        return 1.0, 0.0

    layer = SampleRenorm1d(2, 3, limits=schedule)
    for _ in range(3):
        layer(torch.randn(4, 2), torch.tensor([0, 0, 1, 1]))
    assert steps == [0, 1, 2]


@pytest.mark.parametrize("code", [3, -1])
@pytest.mark.parametrize("training", [True, False])
def test_sample_out_of_range(code, training):
    layer = SampleRenorm1d(2, 3).train(training)
    before = state_of(layer)
    for call in (layer, layer.inverse, layer.to_reference):
        with pytest.raises(IndexError, match=rf"sample {code} is out of range: .* samples 0 to 2"):
            call(torch.zeros(2, 2), torch.tensor([0, code]))
    assert_same_state(layer, before)


def test_input_of_another_kind():
    layer = SampleRenorm1d(2, 3)
    with pytest.raises(ValueError, match=r"expected input of shape \(cells, 2\)"):
        layer(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="expected one sample per cell"):
        layer(torch.zeros(2, 2), torch.tensor([0]))
    with pytest.raises(TypeError, match="must hold int64 codes"):
        layer(torch.zeros(2, 2), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    "option",
    [
        {"num_samples": 0},
        {"eps": -1e-5},
        {"momentum": 0.0},
        {"momentum": 1.5},
        {"mixing": 1.5},
        {"max_kept": (0.5, 0.0)},
        {"limits": (0.5, 0.0)},
    ],
)
def test_options_out_of_range(option):
    with pytest.raises(ValueError, match="received"):
        SampleRenorm1d(**{"num_features": 2, "num_samples": 3, **option})
