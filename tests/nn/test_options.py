"""What the layers offer beside the paper: masks, beginnings, averages of deviations, mixing."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn import renorm_oracle as oracle
from numpy.testing import assert_allclose
from torch import nn

from bioren.nn import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    BySamples,
    InstanceRenorm1d,
    LazyBatchRenorm1d,
    LazyBatchRenorm2d,
    LazyBatchRenorm3d,
    LinearLimits,
    LinearMixing,
)
from bioren.nn.functional import batch_renorm

FREE = (math.inf, math.inf)
DOUBLE = {"dtype": torch.float64}


# Masks and weights

rows_or_maps = st.sampled_from([(7, 3), (5, 3, 4), (3, 3, 2, 3), (2, 3, 2, 2, 3)])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=rows_or_maps, by_row=st.booleans())
def test_masked_values_are_as_if_they_were_not_there(seed, shape, by_row):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape[:1] if by_row else (shape[0], *shape[2:])) < 0.6
    x = rng.normal(2, 3, shape)
    spread = np.broadcast_to(
        mask.reshape(-1, *[1] * (len(shape) - 2)) if by_row else mask, (shape[0], *shape[2:])
    )
    if spread.sum() < 2:
        return
    layer = BatchRenorm1d(3, limits=(1.5, 0.5), momentum=0.3, affine=False, **DOUBLE)
    layer._check_input_dim = lambda input: None
    kept = np.moveaxis(x, 1, -1)[spread]  # values x channels
    twin = copy.deepcopy(layer)
    expected = twin(torch.tensor(kept))
    filled = np.where(np.expand_dims(spread, 1), x, np.nan)
    y = layer(torch.tensor(filled), torch.tensor(mask))
    assert_allclose(np.moveaxis(y.numpy(), 1, -1)[spread], expected, rtol=1e-9, atol=1e-9)
    assert_allclose(layer.running_mean, twin.running_mean, rtol=1e-12, atol=1e-12)
    assert_allclose(layer.running_var, twin.running_var, rtol=1e-12, atol=1e-12)


def test_gradient_of_masked_values_is_that_of_the_values_that_count():
    x = torch.randn(8, 3, **DOUBLE)
    mask = torch.tensor([True, False, True, True, False, True, True, False])
    a, b = x.clone().requires_grad_(), x[mask].clone().requires_grad_()
    layer = BatchRenorm1d(3, limits=(1.5, 0.5), **DOUBLE)
    copy.deepcopy(layer)(a, mask)[mask].pow(3).sum().backward()
    layer(b).pow(3).sum().backward()
    torch.testing.assert_close(a.grad[mask], b.grad)
    assert torch.equal(a.grad[~mask], torch.zeros(3, 3, **DOUBLE))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_masked_values_that_are_not_finite_reach_no_gradient(value):
    x = torch.randn(6, 3, 4)
    mask = torch.rand(6, 4) < 0.6
    spoilt = torch.where(mask[:, None], x, value)
    found = []
    for values in (x, spoilt):
        layer = BatchRenorm1d(3, limits=(1.5, 0.5))
        leaf = values.clone().requires_grad_()
        (layer(leaf, mask).pow(3) * mask[:, None]).sum().backward()
        found.append([leaf.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(found[1], found[0])


def test_a_weight_of_two_normalizes_as_the_value_twice():
    x = torch.randn(4, 3, **DOUBLE)
    layer = BatchRenorm1d(3, limits=(1.5, 0.5), initial="unit", momentum=0.3, **DOUBLE)
    twin = copy.deepcopy(layer)
    y = layer(x, torch.tensor([1.0, 2.0, 1.0, 0.0]))
    expected = twin(x[[0, 1, 1, 2]])
    torch.testing.assert_close(y[:3], expected[[0, 1, 3]])
    torch.testing.assert_close(layer.running_mean, twin.running_mean)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**32 - 1))
def test_only_ratios_of_weights_matter(scale, seed):
    rng = np.random.default_rng(seed)
    x, weights = torch.tensor(rng.normal(size=(5, 3))), torch.tensor(rng.random(5))
    layer = BatchRenorm1d(3, limits=(1.5, 0.5), momentum=0.3, **DOUBLE)
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(layer(x, weights), twin(x, weights * scale))
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


def test_weights_that_sum_to_one_leave_the_variance_in_bounds():
    layer = BatchRenorm1d(3, limits=(3.0, 5.0), momentum=0.3)
    for _ in range(30):
        weights = torch.rand(10)
        layer(torch.randn(10, 3), weights / weights.sum())
    assert layer.running_var.max() < 3


def test_all_masked_changes_nothing_and_stays_finite():
    layer = BatchRenorm1d(3, limits=(3.0, 5.0))
    x = torch.randn(4, 3, requires_grad=True)
    y = layer(x, torch.zeros(4, dtype=torch.bool))
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert torch.equal(layer.running_mean, torch.zeros(3))
    assert torch.equal(layer.running_var, torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_masks_under_autocast(dtype):
    x, mask = torch.randn(64, 8).to(dtype), torch.rand(64) < 0.7
    layer = BatchRenorm1d(8, limits=(1.5, 0.5))
    twin = copy.deepcopy(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x, mask)
    torch.testing.assert_close(y, twin(x, mask))
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float32, 1e-5)]
)
def test_gradients_under_a_mask_are_as_good_as_the_precision_of_the_input(dtype, error):
    x, dy, mask = torch.randn(2048, 4), 50 * torch.randn(2048, 4) + 20, torch.rand(2048) < 0.7
    gradients = []
    for of in (dtype, torch.float64):
        leaf = x.to(dtype).to(of).clone().requires_grad_()
        BatchRenorm1d(4, limits=(1.5, 0.5), dtype=torch.promote_types(of, torch.float32))(
            leaf, mask
        ).backward(dy.to(dtype).to(of))
        gradients.append(leaf.grad.double())
    assert (gradients[0] - gradients[1]).abs().max() < error * gradients[1].abs().max()


@pytest.mark.parametrize("value", [1e30, torch.finfo(torch.float32).min])
def test_huge_values_that_do_not_count_reach_no_gradient(value):
    x, mask = 0.1 * torch.randn(64, 3), torch.ones(64, dtype=torch.bool)
    mask[5] = False
    x[5] = value
    leaf = x.requires_grad_()
    (BatchRenorm1d(3, limits=(1.5, 0.5))(leaf, mask)[mask]).pow(3).sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_weights_of_any_scale(scale):
    x, weights = torch.randn(8, 3), torch.rand(8)
    layer = BatchRenorm1d(3, limits=(1.5, 0.5))
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(layer(x, weights * scale), twin(x, weights))
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


def test_where_nothing_counts_the_output_is_that_of_evaluation():
    layer = BatchRenorm1d(3, limits=(1.5, 0.5))
    layer(torch.randn(8, 3) * 2 + 1)
    x = torch.randn(8, 3)
    expected = copy.deepcopy(layer).eval()(x)
    torch.testing.assert_close(layer(x, torch.zeros(8, dtype=torch.bool)), expected)


def test_masks_have_no_gradient():
    mask = torch.rand(8).requires_grad_()
    y = BatchRenorm1d(3, limits=(1.5, 0.5))(torch.randn(8, 3), mask)
    assert (
        torch.autograd.grad(y.sum(), mask, allow_unused=True) == (None,)
        if y.requires_grad
        else True
    )


def test_learned_mixing_of_another_dtype():
    y = BatchRenorm1d(3, mixing="learned", dtype=torch.float64)(torch.randn(8, 3))
    assert y.dtype == torch.float32


def test_mask_of_ones_is_no_mask():
    x = torch.randn(5, 3, 4, **DOUBLE)
    layer = BatchRenorm1d(3, limits=(1.5, 0.5), **DOUBLE)
    for mask in (torch.ones(5), torch.ones(5, 4), torch.ones(5, 1, 4)):
        a, b = copy.deepcopy(layer), copy.deepcopy(layer)
        torch.testing.assert_close(a(x, mask), b(x))
        torch.testing.assert_close(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("shape", [(1, 4), (5, 1), (1, 1, 4), (5, 1, 1), (1, 1, 1)])
def test_masks_broadcast(shape):
    x, mask = torch.randn(5, 3, 4, **DOUBLE), torch.rand(shape) < 0.7
    mask.view(-1)[0] = True
    whole = mask.reshape(shape[0], shape[-1]).expand(5, 4)
    layer = BatchRenorm1d(3, limits=(1.5, 0.5), **DOUBLE)
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(layer(x, mask), twin(x, whole))
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


@pytest.mark.parametrize("shape", [(4,), (5, 3), (5, 3, 4), (3, 5), (5, 1, 1, 4)])
def test_mask_of_another_shape(shape):
    layer = BatchRenorm1d(3)
    with pytest.raises(ValueError, match=r"expected a mask of shape \(5,\) or \(5, 4\)"):
        layer(torch.zeros(5, 3, 4), torch.ones(shape))
    assert layer.num_batches_tracked == 0


# How running statistics begin


@pytest.mark.parametrize("initial", ["first_batch", "debiased"])
def test_first_batch_far_from_the_start_is_normalized(initial):
    # From mean 0 and variance 1, limits leave it at 10 deviations and more.
    x = torch.randn(64, 3) * 50 + 200
    y = BatchRenorm1d(3, limits=(3.0, 5.0), initial=initial)(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.std(0), torch.ones(3), rtol=0.02, atol=0)
    started = BatchRenorm1d(3, limits=(3.0, 5.0), initial="unit")(x)
    assert started.mean() > 3


def test_first_batch_is_what_is_remembered_and_the_rest_as_usual():
    layer = BatchRenorm1d(2, initial="first_batch", momentum=0.25, limits=(3.0, 5.0), **DOUBLE)
    a, b = torch.randn(2, 6, 2, **DOUBLE) * 3 + 4
    layer(a)
    torch.testing.assert_close(layer.running_mean, a.mean(0))
    torch.testing.assert_close(layer.running_var, a.var(0))
    layer(b)
    torch.testing.assert_close(layer.running_mean, 0.75 * a.mean(0) + 0.25 * b.mean(0))


def test_debiased_is_the_exponential_average_divided_by_its_weights():
    layer = BatchRenorm1d(2, initial="debiased", momentum=0.1, limits=(3.0, 5.0), **DOUBLE)
    batches = torch.randn(7, 6, 2, **DOUBLE) * 3 + 4
    for x in batches:
        layer(x)
    weights = 0.1 * 0.9 ** torch.arange(6, -1, -1, **DOUBLE)
    weights /= weights.sum()
    torch.testing.assert_close(layer.running_mean, (weights[:, None] * batches.mean(1)).sum(0))
    torch.testing.assert_close(layer.running_var, (weights[:, None] * batches.var(1)).sum(0))


@pytest.mark.parametrize("initial", ["first_batch", "debiased"])
@pytest.mark.parametrize("spoilt", ["not finite", "masked", "empty"])
def test_a_minibatch_without_information_is_not_the_first(initial, spoilt):
    layer = BatchRenorm1d(2, initial=initial, limits=(3.0, 5.0))
    x = torch.randn(64, 2) * 50 + 200
    if spoilt == "masked":
        layer(x, torch.zeros(64))
    else:
        layer(x[:0] if spoilt == "empty" else x * math.nan)
    assert layer.num_batches_tracked == 0
    layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean(0))


@pytest.mark.parametrize("initial", ["first_batch", "debiased"])
def test_first_row_alone_leaves_the_variance(initial):
    layer = BatchRenorm1d(2, initial=initial, limits=(3.0, 5.0))
    layer(torch.tensor([[3.0, -2.0]]))
    assert torch.equal(layer.running_mean, torch.tensor([3.0, -2.0]))
    assert torch.equal(layer.running_var, torch.ones(2))


# Moving standard deviations


def test_moving_deviation_is_the_papers_average():
    layer = BatchRenorm1d(
        2, moving="std", momentum=0.2, eps=1e-3, limits=FREE, initial="unit", **DOUBLE
    )
    std = np.ones(2) * np.sqrt(1 + 1e-3)
    for x in torch.randn(5, 6, 2, **DOUBLE) * 3:
        expected = x / torch.tensor(std) - layer.running_mean / torch.tensor(std)
        torch.testing.assert_close(layer(x), expected)
        std = 0.8 * std + 0.2 * np.sqrt(x.numpy().var(0) + 1e-3)
    assert_allclose(layer.running_var, std**2 - 1e-3)


# Mixing


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixing_goes_a_share_of_the_way(share):
    arrays = [np.random.default_rng(0).normal(2, 3, (6, 3)), np.zeros(3), np.ones(3)]
    x = torch.tensor(arrays[0])
    layer = BatchRenorm1d(
        3, limits=(2.0, 1.0), initial="unit", mixing=share, affine=False, **DOUBLE
    )
    _, (r, d), _, _ = oracle.batch_renorm(
        *arrays, np.ones(3), np.zeros(3), r_max=2.0, d_max=1.0, eps=1e-5, momentum=0
    )
    z = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    expected = z * torch.tensor(r**share) + torch.tensor(share * d)
    torch.testing.assert_close(layer(x), expected)


def test_learned_mixing_starts_at_one_half_and_learns():
    layer = BatchRenorm1d(3, limits=(3.0, 5.0), mixing="learned", **DOUBLE)
    half = BatchRenorm1d(3, limits=(3.0, 5.0), mixing=0.5, **DOUBLE)
    x = torch.randn(6, 3, **DOUBLE) * 2 + 1
    y = layer(x)
    torch.testing.assert_close(y, half(x))
    y.pow(3).sum().backward()
    assert (layer.mixing_logit.grad != 0).all()
    assert "mixing_logit" in layer.state_dict()


def test_learned_mixing_has_a_gradient_in_the_warm_up_too():
    # A parameter without one stops DistributedDataParallel.
    layer = BatchRenorm1d(3, mixing="learned")
    layer(torch.randn(6, 3)).sum().backward()
    assert torch.equal(layer.mixing_logit.grad, torch.zeros(3))


def test_scheduled_mixing_follows_the_step():
    layer = BatchRenorm1d(3, limits=FREE, mixing=LinearMixing(1, 3), **DOUBLE)
    for share in (0, 0, 0.5, 1, 1):
        fixed = BatchRenorm1d(3, limits=FREE, mixing=float(share), **DOUBLE)
        fixed.load_state_dict(layer.state_dict())
        x = torch.randn(6, 3, **DOUBLE) * 2 + 1
        torch.testing.assert_close(layer(x), fixed(x))


@pytest.mark.parametrize(
    ("mixing", "error"),
    [(1.5, ValueError), (-0.1, ValueError), (None, TypeError), ("x", TypeError)],
)
def test_mixing_out_of_range(mixing, error):
    with pytest.raises(error, match="mixing must"):
        BatchRenorm1d(3, mixing=mixing)


def test_mixing_schedule_out_of_range():
    with pytest.raises(ValueError, match="0 <= start <= end"):
        LinearMixing(3, 2)
    with pytest.raises(ValueError, match="lie in"):
        LinearMixing(0, 2, last=2.0)


# Schedules by rows


def test_limits_by_rows_do_not_depend_on_the_size_of_minibatches():
    limits = BySamples(LinearLimits(8, 24, 24, 3.0, 5.0))
    ones, fours = (BatchRenorm1d(2, limits=limits) for _ in range(2))
    for _ in range(16):
        ones(torch.randn(1, 2))
    for _ in range(4):
        fours(torch.randn(4, 2))
    assert ones.num_samples_tracked == fours.num_samples_tracked == 16
    assert limits(ones.num_samples_tracked) == (2.0, 2.5)
    fours.reset_running_stats()
    assert fours.num_samples_tracked == 0


def test_limits_can_be_changed_later():
    layer = BatchRenorm1d(2)
    layer.limits = (3.0, 5.0)
    assert layer.limits(layer.num_batches_tracked) == (3.0, 5.0)
    layer(torch.randn(5, 2))
    layer.limits = BySamples(LinearLimits(8, 24, 24, 3.0, 5.0))
    layer(torch.randn(5, 2))
    assert layer.num_samples_tracked == 5
    assert "num_samples_tracked" in layer.state_dict()
    layer.limits = (3.0, 5.0)
    assert layer.state_dict().keys() == nn.BatchNorm1d(2).state_dict().keys()
    with pytest.raises(TypeError, match="a schedule or a pair"):
        layer.limits = 3.0


def test_rows_seen_are_saved_and_start_anew_with_batch_normalization():
    limits = BySamples(LinearLimits(8, 24, 24, 3.0, 5.0))
    layer, twin = (BatchRenorm1d(2, limits=limits) for _ in range(2))
    layer(torch.randn(5, 2))
    twin.load_state_dict(layer.state_dict())
    assert twin.num_samples_tracked == 5
    twin.load_state_dict(nn.BatchNorm1d(2).state_dict())
    assert twin.num_samples_tracked == 0


# Two and three dimensions, lazy layers


@pytest.mark.parametrize(
    ("kind", "plain", "shape"),
    [
        (BatchRenorm2d, nn.BatchNorm2d, (4, 3, 5, 6)),
        (BatchRenorm3d, nn.BatchNorm3d, (2, 3, 3, 4, 5)),
    ],
)
def test_more_dimensions(kind, plain, shape):
    x = torch.randn(shape) * 2 + 1
    ours, theirs = kind(3, momentum=0.1, limits=(1.0, 0.0)), plain(3)
    assert torch.equal(ours(x), theirs(x))
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    rows = BatchRenorm1d(3, limits=(1.5, 0.5))
    flat = x.transpose(1, -1).reshape(-1, 3)
    y = kind(3, limits=(1.5, 0.5))(x).transpose(1, -1).reshape(-1, 3)
    torch.testing.assert_close(y, rows(flat))
    with pytest.raises(ValueError, match="expected input of shape"):
        ours(x[0])


@pytest.mark.parametrize(
    ("lazy", "kind", "shape"),
    [
        (LazyBatchRenorm1d, BatchRenorm1d, (5, 3)),
        (LazyBatchRenorm2d, BatchRenorm2d, (5, 3, 2, 2)),
        (LazyBatchRenorm3d, BatchRenorm3d, (5, 3, 2, 2, 2)),
    ],
)
@pytest.mark.parametrize("mixing", [1.0, "learned"])
def test_lazy_layer_becomes_the_layer(lazy, kind, shape, mixing):
    layer = lazy(limits=(2.0, 1.0), momentum=0.2, mixing=mixing, initial="debiased")
    x = torch.randn(shape)
    y = layer(x)
    assert type(layer) is kind
    expected = kind(3, limits=(2.0, 1.0), momentum=0.2, mixing=mixing, initial="debiased")
    torch.testing.assert_close(y, expected(x))
    torch.testing.assert_close(layer.state_dict(), expected.state_dict())


def test_layer_without_bias():
    layer = BatchRenorm1d(3, bias=False, limits=(2.0, 1.0))
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    layer.reset_parameters()
    x = torch.randn(5, 3)
    layer(x).sum().backward()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("options", [{"initial": "zero"}, {"moving": "mean"}])
def test_unknown_choice(options):
    with pytest.raises(ValueError, match="must be one of"):
        BatchRenorm1d(3, **options)


# The kernels


@pytest.mark.parametrize("shape", [(6, 2), (3, 2, 4), (2, 2, 3, 2)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("affine", [True, False])
def test_first_and_second_derivatives_where_limits_hold_r_and_d(shape, masked, affine):
    mean, var = torch.full((2,), 1e3, **DOUBLE), torch.full((2,), 1e-4, **DOUBLE)
    mask = torch.arange(shape[0]) != 1 if masked else None

    def function(x, weight=None, bias=None):  # r = 3 and d = -5 whatever the input
        return batch_renorm(x, mean.clone(), var.clone(), weight, bias, mask=mask)

    leaves = [torch.randn(shape, **DOUBLE)]
    leaves += [torch.randn(2, **DOUBLE) for _ in range(2)] if affine else []
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_memory_order_changes_nothing(dtype):
    x = (torch.randn(4, 3, 5, 6) * 2 + 1).to(dtype)
    last = x.contiguous(memory_format=torch.channels_last)
    a, b = (t.clone().requires_grad_() for t in (x, last))
    layer = BatchRenorm2d(3, limits=(1.5, 0.5))
    y, z = copy.deepcopy(layer)(a), layer(b)
    y.float().pow(2).sum().backward()
    z.float().pow(2).sum().backward()
    assert z.is_contiguous(memory_format=torch.channels_last)
    tolerance = (
        {"rtol": 2e-2, "atol": 2e-2} if dtype.itemsize == 2 else {"rtol": 1e-4, "atol": 1e-4}
    )
    torch.testing.assert_close(z, y, **tolerance)
    torch.testing.assert_close(b.grad, a.grad, **tolerance)


def test_strided_input():
    x = torch.randn(6, 8, 5)
    layer = BatchRenorm1d(4, limits=(1.5, 0.5))
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(layer(x[::2, ::2]), twin(x[::2, ::2].contiguous()))


@pytest.mark.parametrize("frozen", ["weight", "bias", "both", "input"])
def test_only_what_needs_a_gradient_gets_one(frozen):
    layer = BatchRenorm1d(3, limits=(1.5, 0.5))
    layer.weight.requires_grad_(frozen not in ("weight", "both"))
    layer.bias.requires_grad_(frozen not in ("bias", "both"))
    x = torch.randn(6, 3, requires_grad=frozen != "input")
    twin, copied = copy.deepcopy(layer), x.detach().clone().requires_grad_()
    for p in twin.parameters():
        p.requires_grad_()
    layer(x).pow(3).sum().backward()
    twin(copied).pow(3).sum().backward()
    for found, expected in [(x, copied), *zip(layer.parameters(), twin.parameters(), strict=True)]:
        if found.requires_grad:
            torch.testing.assert_close(found.grad, expected.grad)
        else:
            assert found.grad is None


def test_plain_and_native_ways_agree():
    # Inside of a function transform the kernels are not used.
    x, dy = torch.randn(2, 6, 3, **DOUBLE)
    weight, bias, mean = torch.randn(3, 3, **DOUBLE)
    var = torch.rand(3, **DOUBLE) + 0.5

    def function(x, weight, bias):
        return batch_renorm(x, mean.clone(), var.clone(), weight, bias, r_max=1.5, d_max=0.5)

    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    native = torch.autograd.grad(function(*leaves), leaves, dy)
    _, pullback = torch.func.vjp(
        lambda *leaves: batch_renorm(
            leaves[0],
            mean + 0 * leaves[1].detach(),
            var + 0 * leaves[1].detach(),
            *leaves[1:],
            r_max=1.5,
            d_max=0.5,
        ),
        x,
        weight,
        bias,
    )
    torch.testing.assert_close(pullback(dy), native)


# Corners of the layer's life


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("whole", [True, False], ids=["layer", "input"])
def test_warm_up_takes_every_dtype(dtype, whole):
    layer = BatchRenorm1d(3, dtype=dtype if whole else None)
    y = layer(torch.randn(6, 3).to(dtype))
    y.float().sum().backward()
    assert y.dtype == dtype
    assert layer(torch.randn(6, 3)).dtype == torch.float32


@pytest.mark.parametrize("limits", [(1.0, 0.0), (3.0, 5.0)])
def test_graph_of_evaluation_outlives_a_training_step(limits):
    layer = BatchRenorm1d(3, limits=limits)
    x = torch.randn(6, 3, requires_grad=True)
    y = layer.eval()(x)
    z = layer.train()(x)
    (y.square().sum() + z.sum()).backward()
    assert x.grad.isfinite().all()


def test_no_momentum_freezes_the_statistics():
    for initial in ("unit", "debiased"):
        layer = BatchRenorm1d(3, momentum=0.0, initial=initial, limits=(3.0, 5.0))
        layer.num_batches_tracked.fill_(5)
        layer(torch.randn(6, 3) + 4)
        assert torch.equal(layer.running_mean, torch.zeros(3))


def test_lazy_layer_that_was_loaded():
    layer = LazyBatchRenorm1d(limits=(3.0, 5.0))
    layer.load_state_dict(BatchRenorm1d(3).state_dict())
    assert layer(torch.randn(4, 3)).shape == (4, 3)
    assert layer.num_features == 3


def test_schedule_of_numpy_numbers():
    layer = BatchRenorm1d(3, limits=lambda step: (np.float64(1.5), np.float64(0.5)))
    twin = BatchRenorm1d(3, limits=(1.5, 0.5))
    x = torch.randn(6, 3) + 4
    assert torch.equal(layer(x), twin(x))


def test_refused_input_is_no_step():
    layer = BatchRenorm1d(3, average_backward=2)
    with pytest.raises(TypeError, match=r"floating point dtype, received torch\.int64"):
        layer(torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="mask"):
        layer(torch.zeros(4, 3), torch.ones(4))
    assert layer.num_batches_tracked == 0


def test_sum_of_large_finite_statistics_is_no_reason_to_refuse_them():
    layer = BatchRenorm1d(8, momentum=1.0, limits=(3.0, 5.0))
    x = torch.tensor([[-1e19], [1e19]]).expand(2, 8).contiguous()
    layer(x)
    torch.testing.assert_close(layer.running_var, torch.full((8,), 2e38))


def test_loading_one_weight_keeps_the_count_of_rows():
    layer = BatchRenorm1d(2, limits=BySamples(LinearLimits(8, 24, 24, 3.0, 5.0)))
    layer(torch.randn(5, 2))
    layer.load_state_dict({"weight": torch.ones(2)}, strict=False)
    assert layer.num_samples_tracked == 5


def test_learned_mixing_needs_statistics_to_go_to():
    with pytest.raises(ValueError, match="running statistics"):
        BatchRenorm1d(3, mixing="learned", track_running_stats=False)


# What is out of range, and what is not


@pytest.mark.parametrize("options", [{"eps": 0.0}, {"eps": -1e-5}, {"eps": math.nan}])
def test_eps_has_to_be_positive(options):
    for kind in (BatchRenorm1d, LazyBatchRenorm1d, InstanceRenorm1d):
        with pytest.raises(ValueError, match="eps must be positive"):
            kind(*(() if kind is LazyBatchRenorm1d else (3,)), **options)


@pytest.mark.parametrize("momentum", [-0.1, 1.5, math.nan])
def test_momentum_has_to_be_a_share(momentum):
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\]"):
        BatchRenorm1d(3, momentum=momentum)


def test_a_list_is_a_pair_of_limits():
    assert BatchRenorm1d(3, limits=[3.0, 5.0]).limits == BatchRenorm1d(3, limits=(3.0, 5.0)).limits


def test_learned_mixing_has_a_gradient_without_rows_too():
    for layer in (BatchRenorm1d(3, mixing="learned"), InstanceRenorm1d(3, mixing="learned")):
        layer(torch.zeros(0, 3, 4)).sum().backward()
        assert all(torch.equal(p.grad, torch.zeros(3)) for p in layer.parameters())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_function_and_layer_have_the_same_options(seed, share):
    torch.manual_seed(seed % 2**31)
    x = torch.randn(5, 3, **DOUBLE) * 2 + 1
    layer = BatchRenorm1d(
        3, limits=(1.5, 0.5), initial="unit", mixing=share, moving="std", **DOUBLE
    )
    mean, var = torch.zeros(3, **DOUBLE), torch.ones(3, **DOUBLE)
    given = {"r_max": 1.5, "d_max": 0.5, "moving": "std"}
    for mixing in (share, torch.tensor(share, **DOUBLE)):
        y = batch_renorm(x, mean.clone(), var.clone(), mixing=mixing, **given)
        torch.testing.assert_close(y, copy.deepcopy(layer)(x))
    wrong = ({"mixing": 1.1}, {"momentum": 2.0}, {"moving": "sd"}, {"r_max": 0.5})
    for option in wrong:
        with pytest.raises(ValueError, match="must"):
            batch_renorm(x, mean, var, **option)
