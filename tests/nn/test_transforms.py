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
IMAGES = (4, 3, 5, 5)


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_into_one_graph_it_does_the_same(name):
    layer = LAYERS[name]()
    # Tracing alone, as making kernels takes too long here.
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(IMAGES) * 2 + 1
        a, b = (x.clone().requires_grad_() for _ in range(2))
        y, expected = compiled(a), layer(b)
        y.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled._orig_mod.state_dict(), layer.state_dict())


def test_sample_renorm_compiles_into_one_graph():
    layer, sample = SampleRenorm1d(4, 2), torch.arange(6) % 2
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 4)
    torch.testing.assert_close(compiled(x, sample), eager(x, sample))
    torch.testing.assert_close(layer.state_dict(), eager.state_dict())


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
def test_vmap_where_batch_normalisation_allows_it(renorm):
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
