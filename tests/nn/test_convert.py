"""Networks turned from batch normalisation to renormalisation and back."""

import copy

import pytest
import torch
from torch import nn

from bioren.nn import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    BySamples,
    InstanceRenorm2d,
    LazyBatchRenorm2d,
    LinearLimits,
    SyncBatchRenorm,
    convert_batchnorm,
    convert_sync,
    fold_to_batchnorm,
)

PAIRS = [
    (nn.BatchNorm1d, BatchRenorm1d, (5, 3)),
    (nn.BatchNorm2d, BatchRenorm2d, (5, 3, 2, 2)),
    (nn.BatchNorm3d, BatchRenorm3d, (5, 3, 2, 2, 2)),
]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4, eps=1e-3)
        self.again = self.bn
        self.deep = nn.ModuleDict({"a": nn.Sequential(nn.BatchNorm2d(4, affine=False))})

    def forward(self, x):
        return self.again(self.deep["a"](self.bn(self.conv(x))))


@pytest.mark.parametrize(("plain", "renorm", "shape"), PAIRS)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}])
def test_there_and_back_everything_stays(plain, renorm, shape, options):
    layer = plain(3, **options)
    layer(torch.randn(shape) + 2)
    state, tensors = copy.deepcopy(layer.state_dict()), [*layer.parameters(), *layer.buffers()]
    attributes = set(vars(layer))
    x = torch.randn(shape)
    expected = layer.eval()(x)
    assert convert_batchnorm(layer, limits=(3.0, 5.0)) is layer
    assert type(layer) is renorm
    assert torch.equal(layer(x), expected)
    torch.testing.assert_close(layer.state_dict(), state)
    assert type(fold_to_batchnorm(layer)) is plain
    assert set(vars(layer)) == attributes
    assert all(
        a is b for a, b in zip([*layer.parameters(), *layer.buffers()], tensors, strict=True)
    )
    assert torch.equal(layer(x), expected)
    layer.train()(x)


def test_whole_network_in_place_with_shared_layers_hooks_and_optimiser():
    net, seen = Block(), []
    net.bn.register_forward_hook(lambda module, args, output: seen.append(type(module)))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    assert convert_batchnorm(net, limits=(3.0, 5.0)) is net
    assert type(net.bn) is BatchRenorm2d
    assert net.bn is net.again
    assert net.bn.eps == 1e-3
    before = net.bn.weight.detach().clone()
    net(torch.randn(4, 3, 5, 5)).square().sum().backward()
    optimiser.step()
    assert not torch.equal(net.bn.weight, before)
    assert seen == [BatchRenorm2d, BatchRenorm2d]


def test_options_reach_every_layer():
    net = convert_batchnorm(Block(), limits=(2.0, 1.0), momentum=0.01, initial="first_batch")
    for layer in (net.bn, net.deep["a"][0]):
        assert (layer.momentum, layer.initial) == (0.01, "first_batch")
        assert tuple(layer.limits(torch.tensor(0))) == (2.0, 1.0)


def test_schedule_goes_on_where_a_trained_layer_is():
    layer = nn.BatchNorm1d(3)
    layer.num_batches_tracked.fill_(10**6)
    assert convert_batchnorm(layer).limits(layer.num_batches_tracked) == (3.0, 5.0)


def test_mode_dtype_and_frozen_parameters_stay():
    layer = nn.BatchNorm1d(3, dtype=torch.float64).eval()
    layer.weight.requires_grad_(False)
    convert_batchnorm(layer, mixing="learned")
    assert not layer.training
    assert not layer.weight.requires_grad
    assert layer.mixing_logit.dtype == torch.float64
    assert fold_to_batchnorm(layer).state_dict().keys() == nn.BatchNorm1d(3).state_dict().keys()


def test_lazy_layers():
    net = convert_batchnorm(nn.Sequential(nn.LazyBatchNorm2d(momentum=0.2)), mixing="learned")
    assert type(net[0]) is LazyBatchRenorm2d
    net(torch.randn(2, 3, 4, 4))
    assert type(net[0]) is BatchRenorm2d
    assert net[0].mixing_logit.shape == (3,)
    lazy = fold_to_batchnorm(convert_batchnorm(nn.Sequential(nn.LazyBatchNorm2d())))
    assert type(lazy[0]) is nn.LazyBatchNorm2d
    lazy(torch.randn(2, 3, 4, 4))
    assert type(lazy[0]) is nn.BatchNorm2d


def test_synchronised_layers():
    net = nn.Sequential(nn.SyncBatchNorm(3), nn.BatchNorm1d(3))
    convert_batchnorm(net, limits=(3.0, 5.0))
    assert [type(layer) for layer in net] == [SyncBatchRenorm, BatchRenorm1d]
    convert_sync(net)
    assert [type(layer) for layer in net] == [SyncBatchRenorm] * 2
    assert net[1].process_group is None
    y = net(torch.randn(4, 3))
    y.sum().backward()
    fold_to_batchnorm(net)
    assert [type(layer) for layer in net] == [nn.SyncBatchNorm, nn.BatchNorm1d]
    assert net.eval()(torch.randn(4, 3)).shape == (4, 3)


def test_other_layers_are_left_alone_and_subclasses_named():
    class Fused(nn.BatchNorm2d):
        def forward(self, input):
            return nn.functional.batch_norm(input, self.running_mean, self.running_var).relu()

    net = nn.Sequential(nn.GroupNorm(1, 3), nn.InstanceNorm2d(3), InstanceRenorm2d(3), Fused(3))
    kinds = [type(layer) for layer in net]
    with pytest.raises(ValueError, match=r"Fused.*factories"):
        convert_batchnorm(net)
    with pytest.warns(UserWarning, match="Fused"):
        convert_batchnorm(net, strict=False)
    with pytest.warns(UserWarning, match="Fused"):
        convert_batchnorm(nn.Sequential(*net, nn.BatchNorm2d(3)))
    assert [type(layer) for layer in fold_to_batchnorm(convert_sync(net))] == kinds


def test_subclasses_of_ours_are_left_alone_and_named():
    class Mine(BatchRenorm1d):
        pass

    net = nn.Sequential(Mine(3), BatchRenorm1d(3))
    for change, kind in ((convert_sync, SyncBatchRenorm), (fold_to_batchnorm, nn.BatchNorm1d)):
        with pytest.warns(UserWarning, match="Mine"):
            change(net)
        assert [type(layer) for layer in net] == [Mine, kind]
        net(torch.randn(4, 3))


@pytest.mark.parametrize(
    "options",
    [{"momentun": 0.1}, {"initial": "x"}, {"limits": (0.5, 1.0)}, {"average_backward": 2}],
)
def test_wrong_options_change_nothing(options):
    net = nn.Sequential(nn.BatchNorm1d(3), nn.SyncBatchNorm(3), nn.LazyBatchNorm1d())
    kinds = [type(layer) for layer in net]
    with pytest.raises((TypeError, ValueError)):
        convert_batchnorm(net, **options)
    assert [type(layer) for layer in net] == kinds
    convert_batchnorm(net)(torch.randn(4, 3))


def test_folding_drops_the_count_of_rows():
    layer = BatchRenorm1d(3, limits=BySamples(LinearLimits(1, 2, 2, 3.0, 5.0)))
    nn.BatchNorm1d(3).load_state_dict(fold_to_batchnorm(layer).state_dict())
