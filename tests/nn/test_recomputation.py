"""Activation checkpointing: the second forward pass is the first one again, and counts once."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bioren.nn import (
    BatchRenorm1d,
    BatchRenorm2d,
    BySamples,
    InstanceRenorm1d,
    InstanceRenorm2d,
    LinearLimits,
    SampleRenorm1d,
)
from bioren.nn.recomputation import PASSES

RAMP = LinearLimits(start=0, r_end=6, d_end=6, r_max=3.0, d_max=5.0)
LAYERS = {
    "constant limits": lambda: BatchRenorm2d(4, limits=(3.0, 5.0), momentum=0.3),
    "rising limits": lambda: BatchRenorm2d(4, limits=RAMP, momentum=0.3),
    "warm-up": lambda: BatchRenorm2d(4, momentum=0.3),
    "mean over batches": lambda: BatchRenorm2d(4, limits=RAMP, momentum=None),
    "debiased": lambda: BatchRenorm2d(4, limits=RAMP, initial="debiased"),
    "limits by rows": lambda: BatchRenorm2d(4, limits=BySamples(RAMP), momentum=0.3),
    "learned mixing": lambda: BatchRenorm2d(4, limits=(3.0, 5.0), mixing="learned"),
    "backward averages": lambda: BatchRenorm2d(4, limits=(3.0, 5.0), average_backward=3),
    "instances": lambda: InstanceRenorm2d(4, momentum=0.3),
    "instances to the batch": lambda: InstanceRenorm2d(4, momentum=0.3, target="batch"),
}


def network(layer):
    return nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Tanh(), nn.Conv2d(4, 2, 3)).double()


def batch(seed, rows=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, 7, 7, generator=generator, dtype=torch.float64) * (1 + seed) + seed


def gradients(net, losses):
    net.zero_grad()
    for loss in losses:
        loss.backward()
    return [p.grad.clone() for p in net.parameters()]


def assert_same(a, b, plain, again):
    torch.testing.assert_close(again, plain, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(b.state_dict(), a.state_dict(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "hooks"])
@pytest.mark.parametrize("name", LAYERS)
def test_checkpointed_training_is_training(name, reentrant):
    a = network(LAYERS[name]())
    b = copy.deepcopy(a)
    for step in range(4):
        x = batch(step).requires_grad_()
        plain = gradients(a, [a(x).square().sum()])
        dx, x.grad = x.grad, None
        again = gradients(b, [checkpoint(b, x, use_reentrant=reentrant).square().sum()])
        assert_same(a, b, plain, again)
        torch.testing.assert_close(x.grad, dx, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)], ids=["first in, first out", "last in"])
def test_several_passes_before_their_backward_passes(order):
    a = network(LAYERS["rising limits"]())
    b = copy.deepcopy(a)
    inputs = [batch(step, rows=2 + step).requires_grad_() for step in range(3)]
    plain, again = [a(x).square().sum() for x in inputs], []
    again = [checkpoint(b, x, use_reentrant=False).square().sum() for x in inputs]
    assert_same(
        a, b, gradients(a, [plain[k] for k in order]), gradients(b, [again[k] for k in order])
    )


def test_same_minibatch_twice_is_the_later_pass():
    a = network(LAYERS["constant limits"]())
    b = copy.deepcopy(a)
    x = batch(1).requires_grad_()
    for _ in range(3):
        plain = gradients(a, [a(x).square().sum()])
        again = gradients(b, [checkpoint(b, x, use_reentrant=False).square().sum()])
        assert_same(a, b, plain, again)


def test_minibatches_of_the_same_mean():
    a = BatchRenorm1d(2, limits=(3.0, 5.0), momentum=0.5).double()
    b = copy.deepcopy(a)
    x = torch.tensor([[-1.0, 2.0], [1.0, -2.0]], dtype=torch.float64)
    inputs = [(x * k).requires_grad_() for k in (1, 3, 0.2)]
    plain = torch.autograd.grad(sum(a(x).pow(3).sum() for x in inputs), inputs)
    again = [checkpoint(b, x, use_reentrant=False).pow(3).sum() for x in inputs]
    torch.testing.assert_close(torch.autograd.grad(sum(again), inputs), plain)


def test_a_pass_too_far_back_is_told():
    layer = BatchRenorm1d(2, limits=(3.0, 5.0))
    x = torch.randn(4, 2, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=False)
    with torch.no_grad():
        for _ in range(PASSES):
            layer(torch.randn(4, 2))
    with pytest.warns(UserWarning, match="too far back"):
        y.sum().backward()


def test_layer_used_twice_in_one_pass():
    layer = BatchRenorm1d(5, limits=(3.0, 5.0), momentum=0.3)
    a = nn.Sequential(nn.Linear(5, 5), layer, nn.Tanh(), nn.Linear(5, 5), layer).double()
    b = copy.deepcopy(a)
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        plain = gradients(a, [a(x).pow(3).sum()])
        again = gradients(b, [checkpoint(b, x, use_reentrant=False).pow(3).sum()])
        assert_same(a, b, plain, again)


def test_a_pass_that_is_not_finite_is_no_other_pass():
    layer = BatchRenorm1d(3, limits=(3.0, 5.0), momentum=0.3).double()
    twin = copy.deepcopy(layer)
    spoilt = torch.full((4, 3), torch.nan, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=False)
    checkpoint(layer, spoilt.requires_grad_(), use_reentrant=False)
    y.pow(3).sum().backward()
    dx, x.grad = x.grad, None
    twin(x).pow(3).sum().backward()
    torch.testing.assert_close(dx, x.grad)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "hooks"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_checkpointed_samples(reentrant, strength):
    layer = SampleRenorm1d(3, 4, limits=RAMP, momentum=0.3, mixing=1 - strength).double()
    twin = copy.deepcopy(layer)
    for step in range(4):
        x = (torch.randn(9, 3, dtype=torch.float64) * (1 + step) + step).requires_grad_()
        sample = torch.randint(0, 2 + min(step, 2), (9,))
        plain = gradients(layer, [layer(x, sample).pow(3).sum()])
        dx, x.grad = x.grad, None
        again = checkpoint(twin, x, sample, use_reentrant=reentrant)
        assert_same(layer, twin, plain, gradients(twin, [again.pow(3).sum()]))
        torch.testing.assert_close(x.grad, dx, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layer", [BatchRenorm1d(3, limits=(3.0, 5.0)), InstanceRenorm1d(3)])
def test_nothing_is_kept_where_nothing_is_checkpointed(layer):
    x = torch.randn(4, 3, 5, requires_grad=True)
    layer(x).sum().backward()
    assert len(layer._recollection) == 0


def test_older_torch_that_tells_nothing_of_hooks(monkeypatch):
    monkeypatch.setattr("bioren.nn._torch._hooks", lambda _: True)
    test_checkpointed_training_is_training("rising limits", reentrant=False)
    layer = BatchRenorm1d(3, limits=(3.0, 5.0))
    layer(torch.randn(4, 3, requires_grad=True)).sum().backward()
    assert len(layer._recollection) == 1


def test_memory_is_bounded_and_stays_behind_when_a_layer_is_copied():
    layer = BatchRenorm1d(3, limits=(3.0, 5.0))
    with torch.no_grad():
        for _ in range(PASSES + 5):
            layer(torch.randn(4, 3))
    assert len(layer._recollection) == PASSES
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert len(twin._recollection) == 0
