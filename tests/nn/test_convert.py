"""Networks turned from batch normalization to renormalization and back."""

import copy
import functools
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

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


def test_whole_network_in_place_with_shared_layers_hooks_and_optimizer():
    net, seen = Block(), []
    net.bn.register_forward_hook(lambda module, args, output: seen.append(type(module)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    assert convert_batchnorm(net, limits=(3.0, 5.0)) is net
    assert type(net.bn) is BatchRenorm2d
    assert net.bn is net.again
    assert net.bn.eps == 1e-3
    before = net.bn.weight.detach().clone()
    net(torch.randn(4, 3, 5, 5)).square().sum().backward()
    optimizer.step()
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


def test_synchronized_layers():
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


class Marked(nn.BatchNorm2d):
    """A name alone."""


class Rectified(nn.BatchNorm2d):
    """Does more with what torch's forward pass returns."""

    def forward(self, input):
        return super().forward(input).relu()

    def extra_repr(self):
        return "rectified, " + super().extra_repr()


class Twice(Rectified):
    """A subclass of a subclass."""

    def forward(self, input):
        return 2 * super().forward(input)


SUBCLASSES = {
    "marked": lambda: Marked(3),
    "forward of torch": lambda: Rectified(3),
    "forward of a subclass": lambda: Twice(3),
    "parametrized": lambda: parametrizations.weight_norm(nn.BatchNorm2d(3), dim=None),
}


@pytest.mark.parametrize("name", SUBCLASSES)
def test_subclasses_that_leave_normalizing_to_torch_are_converted_and_folded(name):
    plain = nn.Sequential(SUBCLASSES[name]())
    nn.init.normal_(plain[0].running_mean)
    plain[0].num_batches_tracked.fill_(4)
    net, x = copy.deepcopy(plain), torch.randn(4, 3, 5, 5)
    convert_batchnorm(net, limits=(1.5, 0.5))
    assert isinstance(net[0], BatchRenorm2d)
    assert not isinstance(net[0], nn.BatchNorm2d)
    torch.testing.assert_close(net.eval()(x), plain.eval()(x))
    assert not torch.allclose(net.train()(x), plain.train()(x))
    assert net[0].num_batches_tracked == 5
    assert ("rectified" in repr(net)) == ("forward" in name)
    torch.testing.assert_close(net.eval()(x), copy.deepcopy(net)(x))
    convert_sync(net)
    assert isinstance(net[0], SyncBatchRenorm)
    before = net(x)
    assert type(fold_to_batchnorm(net)[0]) is type(plain[0])
    torch.testing.assert_close(net(x), before)


@pytest.mark.parametrize("kind", [Marked, Twice])
def test_converted_subclasses_are_pickled(kind, tmp_path):
    net = convert_batchnorm(nn.Sequential(kind(3)), limits=(1.5, 0.5))
    net(torch.randn(4, 3, 5, 5))
    torch.save(net, tmp_path / "net.pt")
    again = torch.load(tmp_path / "net.pt", weights_only=False)
    assert type(again[0]) is type(net[0])
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(again(x), net(x))


def test_parametrizations_of_converted_layers_are_removed():
    net = nn.Sequential(parametrizations.weight_norm(nn.BatchNorm2d(3), dim=None))
    convert_batchnorm(net)
    parametrize.remove_parametrizations(net[0], "weight")
    assert type(net[0]) is BatchRenorm2d
    assert type(fold_to_batchnorm(net)[0]) is nn.BatchNorm2d


class OwnForward(nn.BatchNorm2d):
    """Computes something, with torch's function."""

    def forward(self, input):
        return nn.functional.batch_norm(input, None, None, training=True)


def test_factories_make_substitutes_which_are_converted_as_well():
    def parts(layer):
        return nn.Sequential(nn.BatchNorm2d(layer.num_features), nn.ReLU())

    net = nn.Sequential(nn.Sequential(OwnForward(3)), nn.Conv2d(3, 3, 1))
    net[0].append(net[0][0])  # shared
    convert_batchnorm(net, factories={OwnForward: parts}, limits=(3.0, 5.0))
    assert type(net[0][0][0]) is BatchRenorm2d
    assert net[0][0] is net[0][1]
    alone = convert_batchnorm(OwnForward(3), factories={OwnForward: parts})
    assert type(alone[0]) is BatchRenorm2d


def test_an_option_that_one_layer_cannot_have_changes_none():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="learned"):
        convert_batchnorm(net, mixing="learned")
    assert [type(layer) for layer in net] == [nn.BatchNorm1d] * 2
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=1.5))
    with pytest.raises(ValueError, match="momentum"):
        convert_batchnorm(net)
    assert type(net[0]) is nn.BatchNorm1d


class Gated(nn.BatchNorm1d):
    """Has an argument, a property and a class method of its own."""

    def forward(self, input, *, gate=1.0):
        return gate * super().forward(input)

    @property
    def told(self):
        return super().extra_repr()

    @classmethod
    def kind(cls):
        return cls.__name__, super().__init__


def test_keyword_arguments_properties_and_class_methods_stay():
    layer, x = convert_batchnorm(Gated(3), limits=(1.5, 0.5)), torch.randn(4, 3)
    torch.testing.assert_close(layer.eval()(x, gate=2.0), 2 * layer(input=x))
    assert "limits" in layer.told
    assert layer.kind()[0] == "Gated"
    net = nn.Sequential(layer)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), net(x))


class OldStyle(nn.BatchNorm1d):
    """Names itself: no other class can call that."""

    def forward(self, input):
        return super(OldStyle, self).forward(input)  # noqa: UP008


class Branches(nn.BatchNorm1d):
    """Normalizes by torch's function on one of two ways."""

    def forward(self, input):
        if input.dtype == torch.bfloat16:
            return nn.functional.batch_norm(input, None, None, training=True)
        return super().forward(input)


class Callable1d(nn.BatchNorm1d):
    """Its forward pass is no function."""

    forward = functools.partial(torch.relu)


@pytest.mark.parametrize("kind", [OldStyle, Branches, Callable1d])
def test_what_cannot_be_converted_safely_is_left_alone(kind):
    net = nn.Sequential(kind(3), nn.BatchNorm1d(3))
    with pytest.warns(UserWarning, match=kind.__name__):
        convert_batchnorm(net)
    assert [type(layer) for layer in net] == [kind, BatchRenorm1d]


def test_folded_layers_keep_no_process_group():
    layer = fold_to_batchnorm(convert_sync(convert_batchnorm(nn.BatchNorm1d(3))))
    assert not hasattr(layer, "process_group")


@pytest.mark.parametrize("net", [nn.Linear(2, 2), nn.Sequential(OwnForward(3))])
def test_nothing_to_convert_is_an_error_unless_asked(net):
    with pytest.raises(ValueError, match="strict=False"):
        convert_batchnorm(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert convert_batchnorm(net, strict=False) is net


def test_what_is_no_network():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, received str"):
        convert_batchnorm("resnet18")
