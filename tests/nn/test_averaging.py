"""The gradient with its means averaged over minibatches."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from bioren.nn import BatchRenorm1d, BatchRenorm2d, fold_to_batchnorm

DOUBLE = {"dtype": torch.float64}


def slow_gradients(xs, dys, r_d, weight, size, eps):
    """Return input gradients of consecutive minibatches (rows x channels), by the formula."""
    means, found = [], []
    for x, dy, (r, d) in zip(xs, dys, r_d, strict=True):
        std = np.sqrt(x.var(axis=0) + eps)
        y = (x - x.mean(axis=0)) / std * r + d
        g = dy * weight
        means = [*means, (g.mean(axis=0), (g * y).mean(axis=0))][-size:]
        mean_g, mean_gy = np.mean(means, axis=0)
        found.append((g - mean_g - y * mean_gy) * r / std)
    return found


@pytest.mark.parametrize("size", [1, 3])
def test_gradient_is_the_formula(size):
    rng = np.random.default_rng(0)
    xs, dys = rng.normal(1, 2, (5, 4, 3)), rng.normal(size=(5, 4, 3))
    layer = BatchRenorm1d(3, limits=(1.5, 0.5), average_backward=size, **DOUBLE)
    nn.init.normal_(layer.weight)
    terms, found = [], []
    layer.observe(
        lambda r, d, *_: terms.append((r.numpy().clip(1 / 1.5, 1.5), d.numpy().clip(-0.5, 0.5)))
    )
    for x, dy in zip(xs, dys, strict=True):
        leaf = torch.tensor(x, requires_grad=True)
        layer(leaf).backward(torch.tensor(dy))
        found.append(leaf.grad)
    expected = slow_gradients(xs, dys, terms, layer.weight.detach().numpy(), size, layer.eps)
    assert_allclose(torch.stack(found), np.array(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 2)])
def test_average_of_one_minibatch_without_renormalization_is_batch_normalization(shape):
    kind, plain = (
        (BatchRenorm1d, nn.BatchNorm1d) if len(shape) == 2 else (BatchRenorm2d, nn.BatchNorm2d)
    )
    ours = kind(3, limits=(1.0, 0.0), initial="unit", average_backward=1, momentum=0.1, **DOUBLE)
    theirs = plain(3, **DOUBLE)
    for _ in range(3):
        x, dy = torch.randn(2, *shape, **DOUBLE)
        a, b = (x.clone().requires_grad_() for _ in range(2))
        y, z = ours(a), theirs(b)
        y.backward(dy)
        z.backward(dy)
        torch.testing.assert_close(y, z)
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_long_averages_of_pairs_come_closer_to_the_gradient_of_the_population():
    # The loss depends on the normalized value alone; with population statistics that are known,
    # what the averages estimate is known, too.
    generator = torch.Generator().manual_seed(0)
    error = {}
    for size in (1, 64):
        layer = BatchRenorm1d(
            1, limits=(1e6, 1e6), average_backward=size, affine=False, momentum=0.0
        )
        squares = []
        for step in range(400):
            x = torch.randn(2, 1, generator=generator).requires_grad_()
            layer(x).pow(4).sum().backward()
            g = 4 * x.detach() ** 3  # E[g] = 0, E[g x] = 4 E[x^4] = 12
            if step >= 64:
                squares.append((x.grad - (g - 12 * x.detach())).square().mean().item())
        error[size] = np.mean(squares)
    assert error[64] < 0.15 * error[1]


def test_gradient_that_is_not_finite_is_left_out():
    layer = BatchRenorm1d(2, limits=(3.0, 5.0), average_backward=4)
    x = torch.randn(4, 2, requires_grad=True)
    layer(x).sum().backward()
    before = copy.deepcopy(layer.backward_averages)
    layer(x).backward(torch.full((4, 2), torch.inf))
    assert torch.equal(layer.backward_averages.means, before.means)
    assert layer.backward_averages.seen == before.seen == 1


def test_averages_are_no_part_of_the_state():
    layer = BatchRenorm1d(2, average_backward=4)
    layer(torch.randn(4, 2, requires_grad=True)).sum().backward()
    assert layer.state_dict().keys() == nn.BatchNorm1d(2).state_dict().keys()
    twin = copy.deepcopy(layer)
    assert twin.backward_averages.seen == 1
    assert type(fold_to_batchnorm(layer)) is nn.BatchNorm1d
    assert list(layer.children()) == []


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="learned"):
        BatchRenorm1d(2, average_backward=4, mixing="learned")
    with pytest.raises(ValueError, match="1 or more"):
        BatchRenorm1d(2, average_backward=0)
    with pytest.raises(ValueError, match="mask"):
        BatchRenorm1d(2, average_backward=4)(torch.zeros(3, 2), torch.ones(3))


@pytest.mark.parametrize("change", [torch.nn.Module.half, torch.nn.Module.double])
def test_averages_follow_the_dtype(change):
    layer = BatchRenorm1d(2, limits=(3.0, 5.0), average_backward=4)
    layer(torch.randn(4, 2, requires_grad=True)).sum().backward()
    change(layer)
    x = torch.randn(4, 2, dtype=layer.weight.dtype, requires_grad=True)
    layer(x).sum().backward()
    assert layer.backward_averages.seen == 2


def test_untracked_layer_averages_too():
    layer = BatchRenorm1d(2, track_running_stats=False, average_backward=2)
    layer(torch.randn(4, 2, requires_grad=True)).sum().backward()
    assert layer.backward_averages.seen == 1


def test_evaluation_averages_nothing():
    layer = BatchRenorm1d(3, track_running_stats=False, average_backward=4).eval()
    plain = nn.BatchNorm1d(3, track_running_stats=False).eval()
    for _ in range(3):
        a, b = (x.requires_grad_() for x in torch.randn(1, 5, 3).repeat(2, 1, 1).unbind())
        layer(a).pow(3).sum().backward()
        plain(b).pow(3).sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
    assert layer.backward_averages.seen == 0


@pytest.mark.parametrize("reset", ["reset_parameters", "reset_running_stats"])
def test_a_layer_that_is_reset_has_seen_no_gradient(reset):
    layer = BatchRenorm1d(3, average_backward=4)
    layer(torch.randn(5, 3)).pow(3).sum().backward()
    getattr(layer, reset)()
    assert layer.backward_averages.seen == 0
    assert not layer.backward_averages.means.any()


@pytest.mark.parametrize("size", [0, True, 1.5])
def test_sizes_that_are_no_number_of_minibatches(size):
    with pytest.raises(ValueError, match="number of minibatches"):
        BatchRenorm1d(3, average_backward=size)


def test_averages_lie_where_the_layer_does():
    layer = BatchRenorm1d(3, average_backward=4, device="meta", dtype=torch.float64)
    assert {b.device.type for b in layer.backward_averages.buffers()} == {"meta"}
    assert layer.backward_averages.means.dtype == torch.float64
