"""torch's procedures for modules, with its own cases of batch normalization, hold for our layers.

The cases and option sets are in `torch_cases`; a failure names the case.
"""

import copy
import inspect
import io
import pickle

import pytest
import torch
from nn import renorm_oracle as oracle
from nn import torch_cases
from nn.torch_cases import LAZY, OPTIONS, RENORM
from numpy.testing import assert_allclose
from torch import nn

SAME = {"rtol": 0, "atol": 0}
NEAR = {"rtol": 1e-9, "atol": 1e-9}
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
HALVES = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
# What a lazy layer does differently is making its tensors.
MADE_LATE = ["learned", "averages", "no bias", "rows"]
modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def over(*settings):
    return pytest.mark.parametrize("cases", [s for part in settings for s in part], indirect=True)


READY = torch_cases.settings(RENORM)
LATE = torch_cases.settings(LAZY, MADE_LATE)
# Plain gradients: those that averages are mixed into are no derivatives.
DERIVED = torch_cases.settings(RENORM, [name for name in OPTIONS if name != "averages"])


@pytest.fixture
def cases(request):
    return torch_cases.cases(*request.param)


def step(layer, x, dy=None):
    """Run forward and backward; return output, gradient of the input, gradients of parameters."""
    x = x.detach().requires_grad_()
    y = layer(x)
    named = dict(layer.named_parameters())
    dy = torch.ones_like(y) if dy is None else dy
    dx, *gradients = torch.autograd.grad(y, [x, *named.values()], dy, allow_unused=True)
    return y.detach(), dx, dict(zip(named, gradients, strict=True))


def state(layer):
    """Return all parameters and buffers, copied."""
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def stirred(layer):
    """Return `layer` with parameters that are no ones and zeros."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.linspace(-0.7, 1.3, parameter.numel()))
    return layer


def positions(x):
    """Return `x` with at most one dimension of positions."""
    return x.flatten(2) if x.dim() > 2 else x


def is_late(layer):
    return isinstance(layer, nn.modules.lazy.LazyModuleMixin) and layer.has_uninitialized_params()


# Forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@over(READY, LATE)
def test_output_is_that_of_double_precision_in_the_inputs_dtype(cases, dtype):
    tolerance = HALVES.get(dtype, 1e-5)
    for case in cases:
        with case:
            layer, double = case.layer(dtype=dtype), case.layer(dtype=torch.float64)
            for training in (True, True, False):
                x = torch.randn_like(case.x).mul(2).add(1).to(dtype)
                y, expected = layer.train(training)(x), double.train(training)(x.double())
                assert y.dtype == dtype
                assert y.shape == x.shape
                torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=5 * tolerance)


@over(torch_cases.settings(RENORM, ["limits"]))
def test_limits_1_0_give_batch_normalization(cases):
    for case in cases:
        momentum = case.args[2] if len(case.args) > 2 else 0.1
        with case:
            ours = stirred(case.layer(limits=(1.0, 0.0), initial="unit", dtype=torch.float64))
            theirs = stirred(case.plain(dtype=torch.float64))
            ours.momentum = momentum
            for training in (True, True, False):
                x, dy = torch.randn(2, *case.x.shape, dtype=torch.float64) * 3 + 1
                found = step(ours.train(training), x, dy)
                torch.testing.assert_close(found, step(theirs.train(training), x, dy), **NEAR)
            if len(x):  # torch counts a minibatch of nothing
                torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), **NEAR)


@over(torch_cases.settings(RENORM, ["limits"]))
def test_training_is_the_oracles(cases):
    for case in cases:
        if len(case.x) == 0 or not case.tracks:
            continue
        with case:
            layer = stirred(case.layer(initial="unit", dtype=torch.float64))
            mean, var = torch.randn(2, case.args[0], dtype=torch.float64)
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(var.exp())
            weight = 1.0 if layer.weight is None else layer.weight.detach().numpy()
            bias = 0.0 if layer.bias is None else layer.bias.detach().numpy()
            y, _, new_mean, new_var = oracle.batch_renorm(
                positions(case.x).numpy(),
                *(mean.numpy(), var.exp().numpy(), weight, bias),
                r_max=3.0,
                d_max=5.0,
                eps=layer.eps,
                momentum=1.0 if layer.momentum is None else layer.momentum,
            )
            found = layer(case.x)
            assert_allclose(positions(found.detach()), y, **NEAR)
            assert_allclose(layer.running_mean, new_mean, **NEAR)
            assert_allclose(layer.running_var, new_var, **NEAR)


@over(READY, LATE)
def test_input_is_left_alone(cases):
    for case in cases:
        with case:
            layer, x = case.layer(dtype=torch.float64), case.x.clone()
            for training in (True, False):
                y, dx, _ = step(layer.train(training), x)
                assert x._version == 0
                assert torch.equal(x, case.x)
                y.add_(1)
                dx.add_(1)
                assert torch.equal(x, case.x)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@over(READY)
def test_without_gradients_all_is_the_same(cases, without):
    for case in cases:
        with case:
            layer, twin = (case.layer(dtype=torch.float64) for _ in range(2))
            for training in (True, True, False):
                x = torch.randn_like(case.x)
                with without():
                    y = twin.train(training)(x)
                assert not y.requires_grad
                torch.testing.assert_close(y, layer.train(training)(x).detach(), **NEAR)
            torch.testing.assert_close(twin.state_dict(), layer.state_dict(), **NEAR)


@over(READY, LATE)
def test_training_and_evaluation_differ_where_there_are_statistics(cases):
    for case in cases:
        with case:
            layer = case.layer(dtype=torch.float64)
            if is_late(layer):
                layer(case.x[:0])
            before = state(layer)
            y = layer.eval()(case.x)
            torch.testing.assert_close(state(layer), before, **SAME)
            # These inputs are so far from mean 0 and variance 1 that no limits lead there.
            differ = not torch.allclose(layer.train()(case.x), y)
            assert differ == (case.tracks and len(case.x) > 0)
            if case.tracks:
                assert torch.equal(layer.running_mean, before["running_mean"]) != differ


@over(READY, LATE)
def test_every_parameter_has_a_gradient_in_training(cases):
    # One without would stop DistributedDataParallel, an empty minibatch's too.
    for case in cases:
        with case:
            gradients = step(case.layer(dtype=torch.float64), case.x)[2]
            assert [name for name, gradient in gradients.items() if gradient is None] == []


@over(READY)
def test_meta_tensors_go_through(cases):
    for case in cases:
        with case:
            layer = case.layer(device="meta", dtype=torch.float64)
            for training in (True, False):
                y, dx, gradients = step(layer.train(training), case.x.to("meta"))
                assert y.shape == dx.shape == case.x.shape
                for tensor in (y, dx, *(g for g in gradients.values() if g is not None)):
                    assert tensor.is_meta
                    assert tensor.dtype == torch.float64


# Layout


@modes
@over(READY)
def test_strides_of_input_and_gradient_do_not_matter(cases, training):
    for case in cases:
        with case:
            layer = stirred(case.layer(dtype=torch.float64)).train(training)
            twin = copy.deepcopy(layer)
            dy = torch.randn_like(case.x)
            expected = step(layer, case.x, dy)
            x, dy = (torch.stack([t, t + 1], -1)[..., 0] for t in (case.x, dy))
            assert len(x) == 0 or not (x.is_contiguous() or dy.is_contiguous())
            torch.testing.assert_close(step(twin, x, dy), expected, **NEAR)
            torch.testing.assert_close(twin.state_dict(), layer.state_dict(), **NEAR)


@modes
@over(torch_cases.settings(["2d", "3d", "sync"]))
def test_channels_last_is_kept_and_changes_nothing(cases, training):
    for case in cases:
        if case.x.dim() not in FORMATS:
            continue
        with case:
            kept = {"memory_format": FORMATS[case.x.dim()]}
            layer = stirred(case.layer(dtype=torch.float64)).train(training)
            twin = copy.deepcopy(layer)
            if case.x.dim() == 4:
                twin = twin.to(**kept)
            dy = torch.randn_like(case.x)
            expected = step(layer, case.x, dy)
            found = step(twin, case.x.contiguous(**kept), dy.contiguous(**kept))
            torch.testing.assert_close(found, expected, **NEAR)
            assert found[0].is_contiguous(**kept)
            assert found[1].is_contiguous(**kept)
            assert expected[0].is_contiguous()


# Derivatives


def pure(layer):
    """Return `layer` as a function of input and parameters that starts from the same buffers."""
    names = [name for name, _ in layer.named_parameters()]
    buffers = dict(layer.named_buffers())

    def function(x, *parameters):
        fresh = {name: buffer.clone() for name, buffer in buffers.items()}
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, (given, fresh), (x,))

    return function


def check_derivatives(case, layer):
    if len(case.x) == 0:
        return
    function = pure(stirred(layer))
    inputs = [t.detach().clone().requires_grad_() for t in (case.x, *layer.parameters())]
    with case:
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@over(DERIVED)
def test_derivatives_in_evaluation(cases):
    for case in cases:
        layer = case.layer(dtype=torch.float64)
        layer(case.x)
        check_derivatives(case, layer.eval())


@over(DERIVED)
def test_derivatives_in_training_within_limits_1_0(cases):
    for case in cases:
        check_derivatives(case, case.layer(limits=(1.0, 0.0), initial="unit", dtype=torch.float64))


@over(torch_cases.settings(RENORM, ["limits", "debiased", "std", "learned"]))
def test_derivatives_in_training_where_limits_bind(cases):
    for case in cases:
        layer = case.layer(dtype=torch.float64)
        if case.tracks:  # r = 3 and d = -5 whatever the input
            layer.running_mean.fill_(1e4)
            layer.running_var.fill_(1e-4)
            layer.num_batches_tracked.fill_(1)
        check_derivatives(case, layer)


@over(torch_cases.settings(RENORM, ["averages"]))
def test_averages_over_one_minibatch_are_the_gradient(cases):
    for case in cases:
        with case:
            layer = stirred(case.layer(limits=(1.0, 0.0), initial="unit", dtype=torch.float64))
            plain = stirred(
                case.layer(limits=(1.0, 0.0), average_backward=None, dtype=torch.float64)
            )
            dy = torch.randn_like(case.x)
            torch.testing.assert_close(step(layer, case.x, dy), step(plain, case.x, dy), **NEAR)


# Device and dtype


def check_made(layer, device, dtype):
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        assert tensor.device.type == device, name
        if tensor.is_floating_point():
            assert tensor.dtype == dtype, name


@pytest.mark.parametrize("device", ["cpu", "meta"])
@over(READY, LATE)
def test_all_tensors_are_made_as_asked_for(cases, device):
    dtype = torch.float64
    for case in cases:
        with case:
            layer = case.layer(device=device, dtype=dtype)
            check_made(layer, device, dtype)
            layer(case.x.to(device, dtype))
            check_made(layer, device, dtype)


@over(READY, LATE)
def test_all_tensors_are_made_as_torch_is_set(cases):
    for case in cases:
        with case:
            check_made(case.layer(), "cpu", torch.float32)
            with torch.device("meta"):
                check_made(case.layer(), "meta", torch.float32)
                check_made(case.layer(device="cpu"), "cpu", torch.float32)
            torch.set_default_dtype(torch.float64)
            try:
                check_made(case.layer(), "cpu", torch.float64)
            finally:
                torch.set_default_dtype(torch.float32)


@over(READY)
def test_converted_is_made_in_that_dtype(cases):
    for case in cases:
        with case:
            layer, made = case.layer().double(), case.layer(dtype=torch.float64)
            check_made(layer, "cpu", torch.float64)
            for _ in range(2):
                torch.testing.assert_close(step(layer, case.x), step(made, case.x), **NEAR)
            torch.testing.assert_close(layer.state_dict(), made.state_dict(), **NEAR)


@pytest.mark.parametrize("kind", [*RENORM, *LAZY])
def test_positional_arguments_are_those_of_batch_normalization(kind):
    ours = {**RENORM, **LAZY}[kind]
    theirs = getattr(nn, ours.__name__.replace("Renorm", "Norm"))

    def positional(layer):
        parameters = inspect.signature(layer).parameters.values()
        return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    assert positional(ours)[: len(positional(theirs))] == positional(theirs)


@over(READY)
def test_emptied_and_reset_is_new(cases):
    for case in cases:
        with case:
            layer = case.layer(device="meta", dtype=torch.float64).to_empty(device="cpu")
            with torch.no_grad():
                for tensor in (*layer.parameters(), *layer.buffers()):
                    tensor.fill_(7)
            layer.reset_parameters()
            torch.testing.assert_close(state(layer), state(case.layer(dtype=torch.float64)), **SAME)


@over(READY)
def test_trained_and_reset_does_as_a_new_one(cases):
    for case in cases:
        with case:
            layer, new = (case.layer(dtype=torch.float64) for _ in range(2))
            for _ in range(3):
                step(stirred(layer), torch.randn_like(case.x), torch.randn_like(case.x))
            layer.reset_parameters()
            torch.testing.assert_close(layer.state_dict(), new.state_dict(), **SAME)
            for _ in range(3):
                x, dy = torch.randn(2, *case.x.shape, dtype=torch.float64)
                torch.testing.assert_close(step(layer, x, dy), step(new, x, dy), **SAME)
            torch.testing.assert_close(layer.state_dict(), new.state_dict(), **SAME)


@over(READY)
def test_initialization_can_be_skipped(cases):
    for case in cases:
        with case:
            layer = nn.utils.skip_init(case.kind, *case.args, **case.kwargs, dtype=torch.float64)
            new = case.layer(dtype=torch.float64)
            assert {k: v.shape for k, v in state(layer).items()} == {
                k: v.shape for k, v in state(new).items()
            }
            check_made(layer, "cpu", torch.float64)
            layer.load_state_dict(new.state_dict())
            torch.testing.assert_close(layer(case.x), new(case.x), **SAME)


@on_gpu
@over(torch_cases.settings(RENORM, ["limits", "learned", "averages"]))
def test_moves_between_devices_change_nothing(cases):
    for case in cases:
        with case:
            check_made(case.layer(device="cuda", dtype=torch.float64), "cuda", torch.float64)
            layer = stirred(case.layer(dtype=torch.float64))
            step(layer, case.x)
            twin = copy.deepcopy(layer)
            for device in ("cuda", "cpu", "cuda", f"cuda:{torch.cuda.device_count() - 1}"):
                twin.to(device)
                check_made(twin, device.split(":")[0], torch.float64)
                found = step(twin, case.x.to(device))
                torch.testing.assert_close(
                    found, step(layer, case.x), check_device=False, rtol=1e-7, atol=1e-7
                )
            torch.testing.assert_close(
                twin.state_dict(), layer.state_dict(), check_device=False, rtol=1e-7, atol=1e-7
            )


# Text and copies


@over(READY, LATE)
def test_repr_is_text_and_the_same_for_a_copy(cases):
    for case in cases:
        with case:
            layer = case.layer()
            layer(case.x.float())
            assert repr(layer) == str(layer) == repr(copy.deepcopy(layer))
            assert repr(layer).startswith(f"{type(layer).__name__}(")
            assert f"{case.args[0]}, eps={layer.eps}, momentum={layer.momentum}" in repr(layer)
            assert repr(case.layer()).startswith(f"{case.kind.__name__}(")


def by_pickling(layer):
    return pickle.loads(pickle.dumps(layer))


def by_saving(layer, weights_only=False):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickling, by_saving])
@over(READY)
def test_a_copy_does_the_same_by_itself(cases, copied):
    for case in cases:
        with case:
            layer = case.layer(dtype=torch.float64)
            step(layer, case.x)
            before = state(stirred(layer))
            twin = copied(layer)
            assert type(twin) is type(layer)
            torch.testing.assert_close(state(twin), before, **SAME)
            x, dy = torch.randn(2, *case.x.shape, dtype=torch.float64)
            found = step(twin, x, dy)
            torch.testing.assert_close(state(layer), before, **SAME)
            torch.testing.assert_close(found, step(layer, x, dy), **SAME)
            torch.testing.assert_close(state(twin), state(layer), **SAME)


# torch itself gives up their dtype here, and has no deepcopy of them.
@pytest.mark.parametrize("copied", [by_pickling, by_saving])
@over(LATE)
def test_a_copy_makes_its_tensors_by_itself(cases, copied):
    for case in cases:
        with case:
            layer, x = case.layer(), case.x.float()
            twin = copied(layer)
            assert type(twin) is case.kind
            torch.testing.assert_close(step(twin, x), step(layer, x), **SAME)
            torch.testing.assert_close(state(twin), state(layer), **SAME)
            assert type(twin) is type(layer) is not case.kind


@over(READY, LATE)
def test_state_dict_goes_into_a_new_layer(cases):
    for case in cases:
        with case:
            layer, twin = (case.layer(dtype=torch.float64) for _ in range(2))
            for _ in range(2):
                layer(torch.randn_like(case.x))
            stirred(layer)
            twin.load_state_dict(by_saving(layer.state_dict(), weights_only=True))
            torch.testing.assert_close(twin.state_dict(), layer.state_dict(), **SAME)
            for training in (True, False):
                x = torch.randn_like(case.x)
                y = layer.train(training)(x)
                torch.testing.assert_close(twin.train(training)(x), y, **SAME)
            assert type(twin) is type(layer)


@over(READY, LATE)
def test_state_dict_of_batch_normalization_goes_in(cases):
    for case in cases:
        with case:
            ours, theirs = case.layer(dtype=torch.float64), case.plain(dtype=torch.float64)
            theirs(case.x)
            ours.load_state_dict(stirred(theirs).state_dict())
            torch.testing.assert_close(ours.eval()(case.x), theirs.eval()(case.x), **NEAR)


@over(READY)
def test_state_dict_goes_into_batch_normalization(cases):
    more = {"num_samples_tracked", "mixing_logit"}
    for case in cases:
        with case:
            ours, theirs = case.layer(dtype=torch.float64), case.plain(dtype=torch.float64)
            ours(case.x)
            saved = stirred(ours).state_dict()
            theirs.load_state_dict({key: saved[key] for key in saved if key not in more})
            torch.testing.assert_close(theirs.eval()(case.x), ours.eval()(case.x), **NEAR)


# Errors


@pytest.mark.parametrize("setting", [*READY, *LATE])
def test_what_torch_refuses_is_refused(setting):
    for case, error in torch_cases.failures(*setting):
        with case, pytest.raises(error):
            case.layer(dtype=torch.float64)(case.x)
