"""Every fault found in other Batch Renormalization layers, as a law that it breaks.

Each test has a faulty layer beside ours wherever the fault fits into a few lines, so that it is
seen to fail on the fault.  Where a fault has more sides, the file named there has the rest.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bioren.nn import PAPER, BatchRenorm1d, BatchRenorm2d

FREE = (math.inf, math.inf)
DOUBLE = {"dtype": torch.float64}


class Faulty(nn.Module):
    """Batch Renormalization as a dozen lines, with a switch for each fault."""

    def __init__(self, channels, fault=None, r_max=3.0, d_max=5.0, momentum=0.01, eps=1e-5):
        super().__init__()
        self.fault, self.r_max, self.d_max = fault, r_max, d_max
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_mean", torch.zeros(channels, **DOUBLE))
        self.register_buffer("running_var", torch.ones(channels, **DOUBLE))

    def forward(self, x):
        over = [0, *range(2, x.dim())]
        mean_b, var_b = x.mean(over), x.var(over, correction=0)
        if self.fault == "difference of squares":
            var_b = (x.square().mean(over) - mean_b.square()).clamp(min=0)
        std_b = (var_b + self.eps).sqrt()
        std = (self.running_var + self.eps).sqrt()
        if self.fault == "eps twice":
            std = (std.square() + self.eps).sqrt()
        r = (std_b / std).clamp(1 / self.r_max, self.r_max).detach()
        d = ((mean_b - self.running_mean) / std).clamp(-self.d_max, self.d_max).detach()
        shape = [1, -1, *[1] * (x.dim() - 2)]
        if self.fault == "root of the variance":
            z = (x - mean_b.view(shape) + (d * var_b.sqrt()).view(shape)) / std_b.view(shape)
        else:
            z = (x - mean_b.view(shape)) / std_b.view(shape) * r.view(shape) + d.view(shape)
        n = {"rows": x.shape[0], "channels": x.shape[1]}.get(self.fault, x.numel() / x.shape[1])
        with torch.no_grad():
            new = torch.stack([mean_b, var_b * n / (n - 1)])
            old = torch.stack([self.running_mean, self.running_var])
            mean, var = old + self.momentum * (new - old)
            self.running_mean, self.running_var = mean, var
        return z


def test_the_small_layer_without_a_fault_is_ours():
    x = torch.randn(6, 3, 4, **DOUBLE) * 2 + 1
    ours = BatchRenorm1d(3, limits=(1.5, 0.5), initial="unit", momentum=0.3, affine=False, **DOUBLE)
    small = Faulty(3, r_max=1.5, d_max=0.5, momentum=0.3)
    for _ in range(3):
        torch.testing.assert_close(ours(x), small(x))
    torch.testing.assert_close(ours.running_var, small.running_var)


def test_1_limits_do_not_grow_past_the_schedule():
    # More in test_limits.py.  A ramp without its end turns r over at twice the warm-up.
    layer = BatchRenorm1d(1, affine=False)
    layer.num_batches_tracked.fill_(80_000)
    x = torch.linspace(-1, 1, 16)[:, None]
    y = layer(x)
    assert (y.diff(dim=0) > 0).all()
    assert PAPER(layer.num_batches_tracked) == (3.0, 5.0)


@pytest.mark.parametrize(
    ("fault", "shape"), [("rows", (1, 2, 8)), ("channels", (8, 1))], ids=["2", "3"]
)
def test_2_and_3_bessels_factor_counts_the_values_of_a_channel(fault, shape):
    x = torch.randn(shape, **DOUBLE)
    ours = BatchRenorm1d(shape[1], momentum=1.0, limits=(3.0, 5.0), **DOUBLE)
    expected = x.transpose(0, 1).flatten(1).var(dim=1)
    ours(x)
    torch.testing.assert_close(ours.running_var, expected)
    try:
        faulty = Faulty(shape[1], fault, momentum=1.0)
        faulty(x)
    except ZeroDivisionError:
        return
    assert not torch.allclose(faulty.running_var, expected)


def test_4_constant_feature_has_a_finite_gradient():
    x = torch.stack([torch.full((6,), 7.0), torch.arange(6.0)], dim=1).double()
    for layer, finite in (
        (BatchRenorm1d(2, limits=(3.0, 5.0), **DOUBLE), True),
        (Faulty(2, "root of the variance"), False),
    ):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.square().sum().backward()
        assert leaf.grad.isfinite().all() == finite


@pytest.mark.parametrize("scale", [0.03, 0.01])
def test_5_eps_counts_once(scale):
    x = torch.randn(4096, 1, **DOUBLE) * scale
    options = {"momentum": 1.0, "eps": 1e-3}
    for layer, fault in (
        (BatchRenorm1d(1, limits=FREE, **options, **DOUBLE), False),
        (Faulty(1, "eps twice", math.inf, math.inf, **options), True),
    ):
        layer(x)
        z = layer(x)
        mean, var = x.mean(0), x.var(0)
        expected = (x - mean) / (var + 1e-3).sqrt()
        assert torch.allclose(z, expected, rtol=1e-3) != fault


def test_6_without_affine_there_are_no_parameters_and_the_input_is_checked():
    assert list(BatchRenorm1d(3, affine=False).parameters()) == []
    with pytest.raises(ValueError, match="expected input of shape"):
        BatchRenorm1d(3)(torch.zeros(2, 3, 4, 5))


def test_7_large_mean_with_a_small_deviation():
    x = torch.randn(4096, 4) * 0.1 + 1000
    layer = BatchRenorm1d(4, momentum=1.0, limits=FREE)
    layer(x)
    torch.testing.assert_close(layer.running_var, torch.full((4,), 0.01), rtol=0.1, atol=0)
    assert layer(x).isfinite().all()
    faulty = Faulty(4, "difference of squares", math.inf, math.inf, momentum=1.0).float()
    faulty(x)
    assert not torch.allclose(faulty.running_var, torch.full((4,), 0.01), rtol=0.1)


def test_8_first_minibatch_is_normalized():
    # By default limits open from (1, 0) on, and statistics begin with what is seen.
    x = torch.randn(64, 2) * 50 + 200
    for layer in (BatchRenorm1d(2), BatchRenorm1d(2, limits=FREE)):
        y = layer(x)
        assert y.mean().abs() < 1e-4
        assert (y.std() - 1).abs() < 0.02
    assert BatchRenorm1d(2, limits=FREE, initial="unit")(x).mean() > 100


def test_9_a_copy_has_its_forward_pass():
    layer = BatchRenorm1d(3, limits=(3.0, 5.0))
    x = torch.randn(5, 3)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))  # more in test_batch_renorm.py


def test_10_statistics_are_saved_and_evaluation_before_training_is_finite():
    layer = BatchRenorm1d(3)
    assert {"running_mean", "running_var", "num_batches_tracked"} <= layer.state_dict().keys()
    x = torch.randn(5, 3)
    torch.testing.assert_close(layer.eval()(x), x, rtol=1e-4, atol=1e-4)


def test_11_checkpointing_sees_the_same_r_and_d():
    # More in test_recomputation.py.
    x = torch.randn(6, 3, **DOUBLE, requires_grad=True)
    for build, same in (
        (lambda: BatchRenorm1d(3, limits=FREE, momentum=0.5, **DOUBLE), True),
        (lambda: Faulty(3, None, math.inf, math.inf, momentum=0.5), False),
    ):
        layer, twin = build(), build()
        (expected,) = torch.autograd.grad((3 + layer(x)).pow(3).sum(), x)
        y = checkpoint(lambda x, twin=twin: (3 + twin(x)).pow(3), x, use_reentrant=False)
        (found,) = torch.autograd.grad(y.sum(), x)
        assert torch.allclose(found, expected) == same
        assert torch.allclose(layer.running_mean, twin.running_mean) == same


def test_12_one_row_is_right_and_its_zero_gradient_documented():
    layer = BatchRenorm1d(2, limits=FREE, initial="unit", affine=False)
    x = torch.tensor([[2.0, -1.0]], requires_grad=True)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(y, x / math.sqrt(1 + 1e-5))
    assert torch.equal(x.grad, torch.zeros(1, 2))
    assert "gradient zero" in " ".join(BatchRenorm1d.__doc__.split())


def test_13_limits_follow_a_loaded_step():
    trained, fresh = BatchRenorm1d(2), BatchRenorm1d(2)
    trained.num_batches_tracked.fill_(40_000)
    x = torch.randn(6, 2) * 9
    fresh(x)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(x), trained(x))


# 14, what DistributedDataParallel does with the statistics, is in test_sync.py.


@pytest.mark.parametrize("limits", [(1.0, 0.0), (3.0, 5.0)])
@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_15_one_bad_minibatch_does_not_destroy_the_statistics(limits, value):
    layer = BatchRenorm2d(2, momentum=0.5, limits=limits)
    layer(torch.randn(4, 2, 3, 3))
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(4, 2, 3, 3)
    x[1, 0, 2, 2] = value
    layer(x)
    for name in ("running_mean", "running_var"):
        assert torch.equal(layer.state_dict()[name], before[name])
