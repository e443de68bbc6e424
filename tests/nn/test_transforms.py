"""Compilers, exporters and function transforms take the layers as they take torch's own."""

import copy
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.autograd import forward_ad

from bioren.nn import (
    PAPER,
    BatchRenorm1d,
    BatchRenorm2d,
    BySamples,
    InstanceRenorm2d,
    LinearLimits,
    LinearMixing,
    SampleRenorm1d,
    StepLimits,
)


@pytest.fixture(autouse=True)
def _compiled_anew():
    torch._dynamo.reset()


LAYERS = {
    "constant limits": lambda: BatchRenorm2d(3, limits=(3.0, 5.0)),
    "paper": lambda: BatchRenorm2d(3),
    "jumps": lambda: BatchRenorm2d(3, limits=StepLimits(((0, 1.0, 0.0), (1, 3.0, 5.0)))),
    "options": lambda: BatchRenorm2d(
        3, initial="debiased", moving="std", mixing="learned", limits=BySamples(PAPER)
    ),
    "mean over batches": lambda: BatchRenorm2d(3, momentum=None, mixing=LinearMixing(0, 2)),
    "untracked": lambda: BatchRenorm2d(3, track_running_stats=False),
    "instances": lambda: InstanceRenorm2d(3, mixing=0.3),
    "instances to the batch": lambda: InstanceRenorm2d(3, target="batch", mixing="learned"),
}
COMPILED = {
    "constant limits": lambda n: BatchRenorm1d(n, limits=(3.0, 5.0), momentum=0.3),
    "ramp": lambda n: BatchRenorm1d(n, limits=LinearLimits(1, 6, 5, 3.0, 5.0), initial="debiased"),
    "mixing": lambda n: BatchRenorm1d(n, limits=(3.0, 5.0), mixing=LinearMixing(0, 6)),
    "learned": lambda n: BatchRenorm1d(n, limits=(3.0, 5.0), mixing="learned", momentum=0.3),
}
IMAGES = (4, 3, 5, 5)
MAKES_KERNELS = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor's own


def gradients(network, call, inputs):
    """Return all gradients, those of the input too, of a loss that no layer makes zero."""
    network.zero_grad()
    x = inputs[0].clone().requires_grad_()
    y = call(x, *inputs[1:])
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).pow(3).sum().backward()
    return [x.grad, *(p.grad for p in network.parameters()), y]


def assert_compiled_is_eager(network, backend, batches):
    """Compare training steps whose running statistics move on at each of them."""
    torch._dynamo.reset()
    eager, compiled = network.double(), copy.deepcopy(network.double())
    run = torch.compile(compiled, fullgraph=True, backend=backend)
    for inputs in batches:
        expected = gradients(eager, eager, inputs)
        # Schedules are in single precision where they are traced.
        torch.testing.assert_close(gradients(compiled, run, inputs), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict(), rtol=1e-6, atol=1e-8)


def images(rows, steps=4):
    return [(torch.randn(rows, 3, 5, 5, dtype=torch.float64) * 2 + 1,) for _ in range(steps)]


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_into_one_graph_it_has_the_same_gradients(name):
    # Tracing alone, as making kernels takes too long here; what is saved is decided by then.
    assert_compiled_is_eager(LAYERS[name](), "aot_eager", images(4))


@pytest.mark.parametrize("rows", [2, 3, 8])
@pytest.mark.parametrize("name", ["constant limits", "ramp", "mixing", "learned"])
def test_compiled_networks_have_the_same_gradients(name, rows):
    def layer():
        return COMPILED[name](8)

    network = nn.Sequential(
        nn.Linear(5, 8), layer(), nn.Tanh(), nn.Linear(8, 8), layer(), nn.Tanh(), nn.Linear(8, 2)
    )
    batches = [(torch.randn(rows, 5, dtype=torch.float64) * 2 + 1,) for _ in range(4)]
    assert_compiled_is_eager(network, "aot_eager", batches)


@MAKES_KERNELS
def test_made_into_kernels_it_has_the_same_gradients():
    # The finding was made here: a whole gradient off by 3%, that of the weights by 11%.
    layers = [COMPILED[name](16) for name in ("constant limits", "learned")]
    network = nn.Sequential(nn.Linear(5, 16), layers[0], nn.Tanh(), nn.Linear(16, 16), layers[1])
    batches = [(torch.randn(4, 5, dtype=torch.float64) * 2 + 1,) for _ in range(4)]
    assert_compiled_is_eager(network, "inductor", batches)


@pytest.mark.parametrize("shape", [(6,), (6, 5, 5)])
@pytest.mark.parametrize("name", ["constant limits", "options"])
def test_compiled_masks_have_the_same_gradients(name, shape):
    batches = [(*inputs, torch.rand(shape) < 0.7) for inputs in images(6)]
    assert_compiled_is_eager(LAYERS[name](), "aot_eager", batches)


@MAKES_KERNELS
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_samples_have_the_same_gradients(backend):
    layer = SampleRenorm1d(4, 2, momentum=0.3, limits=(1.5, 0.5), mixing=0.3)
    sample = torch.arange(6) % 2
    batches = [(torch.randn(6, 4, dtype=torch.float64), sample) for _ in range(4)]
    assert_compiled_is_eager(layer, backend, batches)


@pytest.mark.parametrize("options", [{}, {"initial": "first_batch"}, {"momentum": None}])
def test_compiled_for_minibatches_of_any_size(options):
    layer = BatchRenorm1d(3, **options)
    run = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    for rows in (8, 9, 5, 8):
        x = torch.randn(rows, 3) + 1
        torch.testing.assert_close(run(x), layer(x))
    torch.testing.assert_close(run._orig_mod.state_dict(), layer.state_dict())


def test_averaged_gradients_are_not_compiled():
    layer = torch.compile(BatchRenorm1d(3, average_backward=4), backend="aot_eager")
    with pytest.raises(Exception, match="average_backward works in eager mode alone"):
        layer(torch.randn(4, 3))


@pytest.mark.parametrize("name", LAYERS)
def test_exported_program_evaluates_the_same(name):
    layer = LAYERS[name]()
    layer(torch.randn(IMAGES))
    layer.eval()
    program = torch.export.export(layer, (torch.randn(IMAGES),))
    x = torch.randn(IMAGES)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("name", ["paper", "instances"])
def test_onnx_evaluates_the_same(name, tmp_path):
    reference = pytest.importorskip("onnx.reference")
    layer = LAYERS[name]()
    layer(torch.randn(IMAGES) + 3)
    layer.eval()
    x = torch.randn(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's about itself
        path = str(tmp_path / "layer.onnx")
        torch.onnx.export(layer, (x,), path, dynamo=True, verbose=False)
        session = reference.ReferenceEvaluator(path)
    (y,) = session.run(None, {session.input_names[0]: x.numpy()})
    assert_allclose(y, layer(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_gradient_by_function_transform_is_the_gradient(training):
    layer = BatchRenorm1d(3, limits=(1.5, 0.5), dtype=torch.float64).train(training)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    buffers = {name: b.clone() for name, b in layer.named_buffers()}
    x = (torch.randn(5, 3, dtype=torch.float64) * 2 + 1).requires_grad_()

    def loss(parameters, x, buffers):
        return torch.func.functional_call(layer, (parameters, buffers), (x,)).pow(3).sum()

    found = torch.func.grad(loss, argnums=(0, 1))(parameters, x.detach(), buffers)
    layer(x).pow(3).sum().backward()
    torch.testing.assert_close(found[1], x.grad)
    torch.testing.assert_close(found[0]["weight"], layer.weight.grad)
    torch.testing.assert_close(buffers, dict(layer.named_buffers()))


def test_forward_mode_derivative_is_the_reverse_one():
    def layer():
        return BatchRenorm1d(3, limits=(1.0, 0.0), dtype=torch.float64)

    x, dx = torch.randn(2, 5, 3, dtype=torch.float64)
    with forward_ad.dual_level(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about itself
        forward = forward_ad.unpack_dual(layer()(forward_ad.make_dual(x, dx))).tangent
    jacobian = torch.autograd.functional.jacobian(lambda x: layer()(x), x)
    torch.testing.assert_close(forward, torch.einsum("abcd,cd->ab", jacobian, dx))


@pytest.mark.parametrize("renorm", [True, False], ids=["ours", "torch"])
def test_vmap_where_batch_normalization_allows_it(renorm):
    kind = BatchRenorm1d if renorm else nn.BatchNorm1d
    many = torch.randn(6, 5, 3)
    for layer in (kind(3).eval(), kind(3, track_running_stats=False)):
        expected = torch.stack([layer(x) for x in many])
        torch.testing.assert_close(torch.vmap(layer)(many), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_a_traced_script_evaluates_the_same(name):
    layer = LAYERS[name]()
    layer(torch.randn(IMAGES))
    layer.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is on its way out of torch
        script = torch.jit.trace(layer, torch.randn(IMAGES))
    x = torch.randn(IMAGES)
    torch.testing.assert_close(script(x), layer(x))


def test_schedules_agree_on_numbers_and_on_tensors_elsewhere():
    schedules = [
        PAPER,
        LinearLimits(2, 2, 5, 3.0, 5.0),
        StepLimits(((0, 1.0, 0.0), (3, 1.5, 1.0), (6, 3.0, 5.0))),
    ]
    for schedule in schedules:
        for step in (0, 2, 3, 4, 6, 9_000, 10**6):
            numbers = schedule(torch.tensor(step))

            @torch.compile(fullgraph=True, backend="eager")
            def traced(step, schedule=schedule):
                return schedule(step)

            tensors = [torch.as_tensor(bound).item() for bound in traced(torch.tensor(step))]
            assert_allclose(np.array(tensors), np.array(numbers, dtype=float), rtol=1e-6)
