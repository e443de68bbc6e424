"""Instance statistics bridged to those of the minibatch or of the population."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import nn

from bioren.nn import InstanceRenorm1d, InstanceRenorm2d, InstanceRenorm3d, LinearMixing
from bioren.nn.functional import instance_renorm

DOUBLE = {"dtype": torch.float64}
KINDS = {
    (4, 3, 6): InstanceRenorm1d,
    (4, 3, 2, 5): InstanceRenorm2d,
    (2, 3, 2, 3, 2): InstanceRenorm3d,
}


def images(shape=(4, 3, 2, 5)):
    """Return instances of different brightness and contrast."""
    per_instance = (*shape[:2], *[1] * (len(shape) - 2))
    contrast = torch.rand(per_instance, **DOUBLE) * 3 + 0.3
    return torch.randn(shape, **DOUBLE) * contrast + torch.randn(per_instance, **DOUBLE) * 2


def slow(x, mean, var, weight, bias, share, eps):
    """Normalize channel by channel of instance by instance."""
    y = np.empty_like(x)
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            own, std = x[i, c].mean(), math.sqrt(x[i, c].var() + eps)
            population = math.sqrt(var[c] + eps)
            r, d = std / population, (own - mean[c]) / population
            y[i, c] = (r**share * (x[i, c] - own) / std + share * d) * weight[c] + bias[c]
    return y


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1), shape=st.sampled_from(list(KINDS)))
def test_values_one_channel_at_a_time(seed, share, shape):
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, shape)
    mean, var, weight, bias = rng.normal(size=3), rng.uniform(0.2, 3, 3), *rng.normal(size=(2, 3))
    y = instance_renorm(
        *(torch.tensor(a) for a in (x, mean, var, weight, bias)), 1e-3, mixing=share
    )
    assert_allclose(y, slow(x, mean, var, weight, bias, share, 1e-3), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", list(KINDS))
@pytest.mark.parametrize("target", ["batch", "population"])
def test_share_of_nothing_is_instance_normalization(shape, target):
    layer = KINDS[shape](3, mixing=0.0, target=target, **DOUBLE)
    theirs = getattr(nn, f"InstanceNorm{len(shape) - 2}d")(3, affine=True, **DOUBLE)
    assert_same_training(layer, theirs, images(shape))


@pytest.mark.parametrize("shape", list(KINDS))
def test_whole_share_is_batch_normalization_with_its_gradient(shape):
    layer = KINDS[shape](3, mixing=1.0, target="batch", momentum=0.1, initial="unit", **DOUBLE)
    theirs = getattr(nn, f"BatchNorm{len(shape) - 2}d")(3, **DOUBLE)
    for _ in range(3):
        assert_same_training(layer, theirs, images(shape))
    torch.testing.assert_close(layer.state_dict(), theirs.state_dict())
    x = images(shape)
    torch.testing.assert_close(layer.eval()(x), theirs.eval()(x))


def assert_same_training(ours, theirs, x):
    dy = torch.randn_like(x)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    y, z = ours(a), theirs(b)
    y.backward(dy)
    z.backward(dy)
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


@pytest.mark.parametrize("target", ["batch", "population"])
def test_the_way_between_is_even_in_mean_and_in_the_logarithm_of_the_deviation(target):
    x = images()
    means, deviations = [], []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = InstanceRenorm2d(
            3, mixing=share, target=target, initial="first_batch", eps=1e-12, **DOUBLE
        )(x)
        means.append(y.mean((2, 3)).detach())
        deviations.append(y.var((2, 3), correction=0).sqrt().log().detach())
    for values in (torch.stack(means), torch.stack(deviations)):
        steps = values.diff(dim=0)
        torch.testing.assert_close(steps, steps[:1].expand_as(steps))
        assert steps.abs().max() > 0.1


@pytest.mark.parametrize("training", [True, False])
def test_an_instance_does_not_see_the_others(training):
    layer = InstanceRenorm2d(3, mixing=0.4, momentum=0.3, **DOUBLE)
    layer(images())
    layer.train(training)
    x = images()
    whole = copy.deepcopy(layer)(x)
    alone = [copy.deepcopy(layer)(x[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(torch.cat(alone), whole)


def test_evaluation_after_training_to_the_batch_does_not_see_the_others_either():
    layer = InstanceRenorm2d(3, mixing=0.4, target="batch", **DOUBLE)
    layer(images())
    layer.eval()
    x = images()
    torch.testing.assert_close(layer(x[:1]), layer(x)[:1])


@pytest.mark.parametrize("target", ["batch", "population"])
def test_running_statistics_are_those_of_batch_normalization(target):
    layer = InstanceRenorm2d(3, target=target, momentum=None, initial="unit", **DOUBLE)
    theirs = nn.BatchNorm2d(3, momentum=None, **DOUBLE)
    for _ in range(3):
        x = images()
        layer(x)
        theirs(x)
    torch.testing.assert_close(layer.state_dict(), theirs.state_dict())


def test_derivatives():
    x = images((2, 2, 3)).requires_grad_()
    weight, bias = torch.randn(2, 2, **DOUBLE).requires_grad_()
    share = torch.tensor([0.2, 0.7], **DOUBLE, requires_grad=True)

    def to_batch(x, weight, bias, share):
        return instance_renorm(x, None, None, weight, bias, mixing=share)

    assert torch.autograd.gradcheck(to_batch, (x, weight, bias, share))
    assert torch.autograd.gradgradcheck(to_batch, (x, weight, bias, share))


def test_r_and_d_to_the_population_are_constants():
    mean, var = torch.randn(3, **DOUBLE), torch.rand(3, **DOUBLE) + 0.5
    x = images().requires_grad_()
    dy = torch.randn_like(x)
    instance_renorm(x, mean, var, mixing=0.6).backward(dy)
    own = x.detach().mean((2, 3), keepdim=True)
    std = (x.detach().var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    r = (std / (var + 1e-5).sqrt()[:, None, None]) ** 0.6
    twin = x.detach().clone().requires_grad_()
    nn.functional.instance_norm(twin).backward(dy * r)
    torch.testing.assert_close(x.grad, twin.grad)
    assert own.shape == r.shape


def test_one_position_has_the_instance_at_its_own_mean():
    layer = InstanceRenorm1d(2, mixing=0.5, initial="unit", eps=1e-3, affine=False, **DOUBLE)
    x = torch.randn(3, 2, 1, **DOUBLE, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(y, 0.5 * x / math.sqrt(1 + 1e-3))
    assert torch.equal(x.grad, torch.zeros(3, 2, 1, **DOUBLE))


def test_empty_batch_and_half_precision():
    layer = InstanceRenorm2d(3)
    before = copy.deepcopy(layer.state_dict())
    assert layer(torch.zeros(0, 3, 2, 2)).shape == (0, 3, 2, 2)
    torch.testing.assert_close(layer.state_dict(), before)
    x = images().float()
    y = copy.deepcopy(layer)(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("target", ["batch", "population"])
def test_minibatch_that_is_not_finite_leaves_the_statistics_alone(target):
    layer = InstanceRenorm2d(3, target=target, **DOUBLE)
    layer(images())
    before = copy.deepcopy(layer.state_dict())
    x = images()
    x[1, 2, 0, 0] = math.inf
    layer(x)
    for name in ("running_mean", "running_var"):
        assert torch.equal(layer.state_dict()[name], before[name])


def test_learned_and_scheduled_mixing():
    x = images()
    learned = InstanceRenorm2d(3, mixing="learned", **DOUBLE)
    y = learned(x)
    torch.testing.assert_close(y, InstanceRenorm2d(3, mixing=0.5, **DOUBLE)(x))
    y.pow(3).sum().backward()
    assert (learned.mixing_logit.grad != 0).all()
    scheduled = InstanceRenorm2d(3, mixing=LinearMixing(0, 2), momentum=0.5, **DOUBLE)
    for share in (0.0, 0.5, 1.0):
        fixed = InstanceRenorm2d(3, mixing=share, momentum=0.5, **DOUBLE)
        fixed.load_state_dict(scheduled.state_dict())
        torch.testing.assert_close(scheduled(x), fixed(x))


def test_without_running_statistics_the_target_is_the_minibatch():
    layer = InstanceRenorm2d(3, track_running_stats=False, target="batch", **DOUBLE)
    x = images()
    torch.testing.assert_close(layer(x), copy.deepcopy(layer).eval()(x))
    assert list(layer.buffers()) == []


def test_bad_arguments():
    with pytest.raises(ValueError, match="needs running statistics"):
        InstanceRenorm1d(3, track_running_stats=False)
    with pytest.raises(ValueError, match="target must be one of"):
        InstanceRenorm1d(3, target="sample")
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        InstanceRenorm2d(3)(torch.zeros(2, 3, 4))
    layer = InstanceRenorm2d(3)
    with pytest.raises(TypeError, match="floating point dtype"):
        layer(torch.zeros(2, 3, 4, 4, dtype=torch.int64))
    assert layer.num_batches_tracked == 0
    with pytest.raises(ValueError, match="positions"):
        instance_renorm(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="mixing must lie"):
        instance_renorm(torch.zeros(2, 3, 4), mixing=2.0)
    with pytest.raises(ValueError, match="given together"):
        instance_renorm(torch.zeros(2, 3, 4), torch.zeros(3))
    assert "target='batch'" in repr(InstanceRenorm1d(3, target="batch"))
