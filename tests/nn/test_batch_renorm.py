import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn import renorm_oracle as oracle
from numpy.testing import assert_allclose
from torch import nn

from bioren.nn import BatchRenorm1d
from bioren.nn.functional import batch_renorm

FREE = (math.inf, math.inf)


def problem(seed, shape, scale=2.0):
    """Input, running moments, weight and bias, far enough apart that limits bind."""
    rng = np.random.default_rng(seed)
    channels = shape[1]
    x = rng.normal(rng.normal(0, 3, (channels, 1))[:, 0], scale, (*shape[:1], *shape[2:], channels))
    return (
        np.moveaxis(x, -1, 1).copy(),
        rng.normal(size=channels),
        rng.uniform(0.2, 4, channels),
        rng.normal(size=channels),
        rng.normal(size=channels),
    )


def tensors(*arrays):
    return [torch.tensor(array, dtype=torch.float64) for array in arrays]


shapes = st.one_of(
    st.tuples(st.integers(2, 12), st.integers(1, 4)),
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(2, 5)),
)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=shapes,
    limits=st.sampled_from([(1.0, 0.0), (1.5, 0.5), (3.0, 5.0), FREE]),
    momentum=st.floats(0, 1),
)
def test_training_is_the_papers_algorithm(seed, shape, limits, momentum):
    arrays = problem(seed, shape)
    x, mean, var, weight, bias = tensors(*arrays)
    r_max, d_max = limits
    y = batch_renorm(
        x, mean, var, weight, bias, momentum=momentum, eps=1e-3, r_max=r_max, d_max=d_max
    )
    expected, _, new_mean, new_var = oracle.batch_renorm(
        *arrays, r_max=r_max, d_max=d_max, eps=1e-3, momentum=momentum
    )
    assert_allclose(y, expected, rtol=1e-9, atol=1e-9)
    assert_allclose(mean, new_mean, rtol=1e-12, atol=1e-12)
    assert_allclose(var, new_var, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limits", [(1.0, 0.0), (1.5, 0.5), FREE])
def test_gradients_hold_r_and_d_fixed(limits):
    arrays = problem(1, (7, 3))
    dy = np.random.default_rng(2).normal(size=(7, 3))
    x, mean, var, weight, bias = tensors(*arrays)
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    batch_renorm(x, mean, var, weight, bias, eps=1e-3, r_max=limits[0], d_max=limits[1]).backward(
        torch.tensor(dy)
    )
    _, (r, d), _, _ = oracle.batch_renorm(
        *arrays, r_max=limits[0], d_max=limits[1], eps=1e-3, momentum=0
    )
    expected = oracle.batch_renorm_gradients(arrays[0], dy, r, d, arrays[3], eps=1e-3)
    for leaf, gradient in zip((x, weight, bias), expected, strict=True):
        assert_allclose(leaf.grad, gradient, rtol=1e-9, atol=1e-9)


def test_gradcheck_where_the_limits_hold_r_and_d_fixed():
    x, _, _, weight, bias = tensors(*problem(3, (5, 2, 3)))
    mean, var = torch.full((2,), 1e3, dtype=torch.float64), torch.full((2,), 1e-4).double()

    def function(x, weight, bias):  # r = 3 and d = -5 whatever the input
        return batch_renorm(x, mean.clone(), var.clone(), weight, bias)

    inputs = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_limits_1_0_are_batch_normalization_bit_for_bit(shape, affine):
    ours = BatchRenorm1d(4, momentum=0.1, affine=affine, limits=(1.0, 0.0), initial="unit")
    theirs = nn.BatchNorm1d(4, momentum=0.1, affine=affine)
    if affine:
        for layer in (ours, theirs):
            with torch.no_grad():
                layer.weight.copy_(torch.linspace(-1, 2, 4))
                layer.bias.copy_(torch.linspace(3, -1, 4))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        values = torch.randn(shape, generator=generator) * 3 + 1
        gradient = torch.randn(shape, generator=generator)
        a, b = (values.clone().requires_grad_() for _ in range(2))
        y, z = ours(a), theirs(b)
        y.backward(gradient)
        z.backward(gradient)
        assert torch.equal(y, z)
        assert torch.equal(a.grad, b.grad)
        if affine:
            assert torch.equal(ours.weight.grad, theirs.weight.grad)
            assert torch.equal(ours.bias.grad, theirs.bias.grad)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.eval()(values), theirs.eval()(values))


def test_the_papers_schedule_begins_as_batch_normalization():
    x = torch.randn(16, 3) * 50 + 200
    assert torch.equal(BatchRenorm1d(3)(x), nn.BatchNorm1d(3)(x))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=shapes)
def test_unclipped_training_is_evaluation_on_the_statistics_before(seed, shape):
    layer = BatchRenorm1d(shape[1], limits=FREE, initial="unit", dtype=torch.float64)
    x, mean, var, _, _ = tensors(*problem(seed, shape))
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var)
    expected = layer.eval()(x)
    torch.testing.assert_close(layer.train()(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_eps_counts_once(scale):
    # Were eps added to a deviation that holds it already, a narrow channel would show it.
    x = torch.randn(4096, 1, dtype=torch.float64) * scale
    layer = BatchRenorm1d(1, momentum=1.0, eps=1e-3, limits=FREE, dtype=torch.float64)
    layer(x)
    torch.testing.assert_close(layer(x), layer.eval()(x), rtol=1e-12, atol=1e-12)


def test_evaluation_changes_nothing_and_does_not_see_the_other_rows():
    layer = BatchRenorm1d(3, momentum=0.5)
    layer(torch.randn(9, 3))
    layer.eval()
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(5, 3)
    whole = layer(x)
    for row in range(5):
        torch.testing.assert_close(layer(x[row : row + 1]), whole[row : row + 1])
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_constant_channel_is_finite_with_finite_gradients():
    layer = BatchRenorm1d(2, limits=(3.0, 5.0))
    x = torch.stack([torch.full((6,), 7.0), torch.arange(6.0)], dim=1).requires_grad_()
    for _ in range(3):
        layer(x).square().sum().backward()
    for values in (x.grad, layer.weight.grad, layer.running_var):
        assert values.isfinite().all()


def test_large_mean_small_spread_in_single_precision():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 2, generator=generator) * 0.1 + 1000
    layer = BatchRenorm1d(2, momentum=1.0, limits=(3.0, 5.0))
    layer(x)
    torch.testing.assert_close(layer.running_var, torch.full((2,), 0.01), rtol=0.1, atol=0)
    y = layer(x)
    # torch's own kernel is that far off in single precision.
    torch.testing.assert_close(y.mean(0), torch.zeros(2), rtol=0, atol=2e-2)
    torch.testing.assert_close(y.std(0), torch.ones(2), rtol=5e-3, atol=0)


def test_one_row_is_renormalized_has_no_input_gradient_and_keeps_the_variance():
    layer = BatchRenorm1d(2, limits=(3.0, 5.0), initial="unit", momentum=0.5)
    x = torch.tensor([[2.0, -1.0]], requires_grad=True)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(y, x / math.sqrt(1 + 1e-5), rtol=0, atol=1e-4)
    torch.testing.assert_close(x.grad, torch.zeros(1, 2))
    torch.testing.assert_close(layer.running_mean, torch.tensor([1.0, -0.5]))
    assert torch.equal(layer.running_var, torch.ones(2))


@pytest.mark.parametrize("shape", [(1, 2, 8), (8, 1, 1)])
def test_bessels_factor_counts_values_per_channel(shape):
    layer = BatchRenorm1d(shape[1], momentum=1.0)
    x = torch.randn(shape)
    layer(x)
    expected = x.transpose(0, 1).flatten(1).var(dim=1)
    torch.testing.assert_close(layer.running_var, expected)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)])
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch(shape, training):
    layer = BatchRenorm1d(3, momentum=None).train(training)
    before = copy.deepcopy(layer.state_dict())
    x = torch.zeros(shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_batch_that_is_not_finite_leaves_the_statistics_alone(value):
    layer = BatchRenorm1d(2, momentum=0.5)
    layer(torch.randn(8, 2))
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    x = torch.randn(8, 2)
    x[3, 1] = value
    layer(x)
    assert torch.equal(layer.running_mean, mean)
    assert torch.equal(layer.running_var, var)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("whole", [True, False], ids=["layer in half", "input in half"])
def test_half_precision_has_statistics_in_single(dtype, whole):
    # The squares of these values overflow float16.
    values = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 100 + 1000
    x = values.to(dtype).requires_grad_()
    layer = BatchRenorm1d(3, limits=(3.0, 5.0), momentum=0.1, dtype=dtype if whole else None)
    single = BatchRenorm1d(3, limits=(3.0, 5.0), momentum=0.1)
    y, expected = layer(x), single(x.detach().float())
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.05)
    tolerance = 0.02 if whole else 1e-6
    assert_allclose(layer.running_var.float(), single.running_var, rtol=tolerance)
    torch.testing.assert_close(
        layer.eval()(x).float(), single.eval()(x.float()), rtol=0.05, atol=0.05
    )


def test_momentum_none_is_the_mean_over_batches():
    ours, theirs = BatchRenorm1d(2, momentum=None), nn.BatchNorm1d(2, momentum=None)
    for _ in range(4):
        x = torch.randn(5, 2) + 3
        ours(x)
        ours(x[:0])  # weighs nothing
        theirs(x)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_untracked_statistics_are_batch_normalization_always():
    ours = BatchRenorm1d(3, track_running_stats=False, limits=(3.0, 5.0))
    theirs = nn.BatchNorm1d(3, track_running_stats=False)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(6, 3) + 4
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_statistics_switched_off_later_are_neither_used_nor_changed_in_training():
    layer = BatchRenorm1d(3, limits=(3.0, 5.0))
    layer.track_running_stats = False
    x = torch.randn(6, 3) + 4
    assert torch.equal(layer(x), nn.BatchNorm1d(3)(x))
    assert torch.equal(layer.running_mean, torch.zeros(3))


def test_affine_false_has_no_parameters():
    assert list(BatchRenorm1d(3, affine=False).parameters()) == []


@pytest.mark.parametrize("affine", [True, False])
def test_state_dict_goes_to_and_from_batch_normalization(affine):
    ours, theirs = BatchRenorm1d(3, affine=affine), nn.BatchNorm1d(3, affine=affine)
    theirs(torch.randn(8, 3) * 2 + 1)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    ours.train()(x)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert theirs.num_batches_tracked == 2


def by_saving(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), by_saving]
)
def test_a_copy_works_and_is_independent(copied):
    layer = BatchRenorm1d(3, limits=(3.0, 5.0), momentum=0.5)
    layer(torch.randn(8, 3))
    twin = copied(layer)
    x = torch.randn(4, 3) * 2
    before = layer.running_mean.clone()
    y = twin(x)
    assert torch.equal(layer.running_mean, before)
    assert torch.equal(layer(x), y)


def test_sync_conversion_does_not_undo_the_renormalization():
    model = nn.Sequential(BatchRenorm1d(3))
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(model)[0], BatchRenorm1d)


def test_repr_names_the_limits():
    assert "limits=ConstantLimits(r_max=3.0, d_max=5.0)" in repr(
        BatchRenorm1d(2, limits=(3.0, 5.0))
    )


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 4, 5)])
def test_input_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"expected input of shape .* received"):
        BatchRenorm1d(3)(torch.zeros(shape))


def test_functional_refuses_what_it_cannot_use():
    x, mean = torch.zeros(2, 3), torch.zeros(3)
    with pytest.raises(ValueError, match="given together"):
        batch_renorm(x, mean, None)
    with pytest.raises(ValueError, match="evaluation needs"):
        batch_renorm(x, None, None, training=False)
    with pytest.raises(ValueError, match="expected 2 channels"):
        batch_renorm(x, mean[:2], mean[:2])
    with pytest.raises(ValueError, match="expected input of shape"):
        batch_renorm(mean, mean, mean)
