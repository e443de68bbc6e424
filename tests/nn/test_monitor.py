"""What a Monitor sees of the layers."""

import copy
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.utils.checkpoint import checkpoint

from bioren.nn import BatchRenorm1d, Monitor, StepLimits, SyncBatchRenorm, fold_to_batchnorm


def network():
    return nn.Sequential(
        nn.Linear(4, 3), BatchRenorm1d(3, limits=(1.2, 0.3), momentum=0.2), SyncBatchRenorm(3)
    )


def test_figures_are_those_of_the_minibatches():
    layer = BatchRenorm1d(3, limits=(1.2, 0.3), initial="unit", momentum=0.2, dtype=torch.float64)
    rows = []
    with Monitor(layer) as monitor:
        for x in torch.randn(5, 8, 3, dtype=torch.float64) * 2 + 0.3:
            std = np.sqrt(layer.running_var.numpy() + 1e-5)
            r = np.sqrt(x.numpy().var(0) + 1e-5) / std
            d = (x.numpy().mean(0) - layer.running_mean.numpy()) / std
            clipped = (r > 1.2) | (r < 1 / 1.2) | (abs(d) > 0.3)
            rows.append([1.2, 0.3, clipped.mean(), abs(np.log(r)).mean(), abs(d).mean()])
            layer(x)
    (seen,) = monitor.layers()
    assert (seen.layer, seen.steps) == ("", 5)
    assert_allclose(seen[2:], np.mean(rows, axis=0))
    assert 0 < seen.clipped < 1


def test_nothing_is_seen_outside_or_in_evaluation_and_values_do_not_change():
    a, b = network(), network()
    b.load_state_dict(a.state_dict())
    x = torch.randn(6, 4)
    a(x)
    with Monitor(a) as monitor:
        a.eval()(x)
        assert monitor.layers() == []
        torch.testing.assert_close(a.train()(x), (b(x), b(x))[1])
    a(x)
    assert [(seen.layer, seen.steps) for seen in monitor.layers()] == [("1", 1), ("2", 1)]
    monitor.reset()
    assert monitor.layers() == []


def test_warm_up_is_seen_too_and_is_no_fault():
    layer = BatchRenorm1d(3, limits=StepLimits(((2, 1.5, 0.5),)), initial="unit")
    with Monitor(layer) as monitor:
        layer(torch.randn(50, 3) + 4)
        (seen,) = monitor.layers()
        assert math.isnan(seen.clipped)
        assert "closed" in str(monitor)
        assert seen.mean_abs_d == pytest.approx(4, rel=0.1)
        assert (seen.r_max, seen.d_max) == (1, 0)
        for _ in range(4):
            layer(torch.randn(50, 3) + 4)
        (seen,) = monitor.layers()
        assert seen.clipped == 1  # of the three steps at which limits were open
        assert (seen.r_max, seen.d_max) == (1.5, 0.5)


def test_a_checkpointed_pass_is_seen_once():
    layer = BatchRenorm1d(3, limits=(3.0, 5.0))
    x = torch.randn(4, 3, requires_grad=True)
    with Monitor(layer) as monitor:
        checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert monitor.layers()[0].steps == 1


def test_compiled_layers_are_seen_too():
    net = network()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    compiled(torch.randn(6, 4))
    with Monitor(net) as monitor:
        compiled(torch.randn(6, 4))
    assert [(seen.layer, seen.steps) for seen in monitor.layers()] == [("1", 1), ("2", 1)]


def test_one_monitor_inside_of_another_and_copies_of_the_network():
    net = network()
    with Monitor(net) as outer:
        net(torch.randn(6, 4))
        with Monitor(net) as inner:
            net(torch.randn(6, 4))
        twin = copy.deepcopy(net)
        twin(torch.randn(6, 4))
        net(torch.randn(6, 4))
        fold_to_batchnorm(net)
    assert [monitor.layers()[0].steps for monitor in (outer, inner)] == [2, 1]
    assert twin[1]._observer is None


def test_minibatches_that_are_not_finite_are_left_out():
    layer, clean = BatchRenorm1d(3, limits=(3.0, 5.0)), BatchRenorm1d(3, limits=(3.0, 5.0))
    x = torch.randn(6, 3)
    with Monitor(layer) as monitor, Monitor(clean) as expected:
        layer(x)
        layer(x * torch.nan)
        clean(x)
    assert monitor.layers()[0][2:] == expected.layers()[0][2:]


def test_table():
    net = network()
    with Monitor(net) as monitor:
        net(torch.randn(6, 4))
    head, *rows = str(monitor).splitlines()
    assert head.split() == ["layer", "steps", "r_max", "d_max", "clipped", "|log", "r|", "|d|"]
    assert [row.split()[:2] for row in rows] == [["1", "1"], ["2", "1"]]
    assert len({len(row) for row in (head, *rows)}) == 1


def test_network_without_such_layers():
    with pytest.raises(ValueError, match="convert_batchnorm"):
        Monitor(nn.Linear(2, 2))
