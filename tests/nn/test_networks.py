"""Networks that people use, converted: counted, evaluated, folded, exported, traced, quantized."""

import copy
import warnings

import pytest
import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bioren.nn import BatchRenorm2d, BatchRenorm3d, convert_batchnorm, fold_to_batchnorm


def imported(module):
    """Return `module` or skip; networks that need none of torchvision's operators will do."""
    pytest.importorskip("torchvision", exc_type=ImportError) if module != "monai" else None
    return pytest.importorskip(module)


@pytest.fixture(scope="module", autouse=True)
def _torchvision_without_its_binary():
    """Give torchvision's operators a name where its build does not fit this torch's.

    It cannot be imported without them, although none of the networks here calls one.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield
    library._destroy()


def resnet18():
    return imported("torchvision.models").resnet18(num_classes=4), (2, 3, 32, 32)


def mobilenet():
    return imported("torchvision.models").mobilenet_v3_small(num_classes=4), (2, 3, 32, 32)


def efficientnet():
    return imported("timm").create_model("efficientnet_b0", num_classes=4), (2, 3, 32, 32)


def unet():
    nets = imported("monai.networks.nets")
    network = nets.UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2), norm="batch")
    return network, (2, 1, 8, 8, 8)


NETWORKS = {f.__name__: f for f in (resnet18, mobilenet, efficientnet, unet)}
OURS = (BatchRenorm2d, BatchRenorm3d)


def count(network, kind):
    return sum(isinstance(layer, kind) for layer in network.modules())


def built(name):
    """Return a network whose statistics are not those of a new one, and inputs."""
    network, shape = NETWORKS[name]()
    network = network.double()
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return network.eval(), torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_converted_and_evaluation_stays(name):
    network, x = built(name)
    layers, expected = count(network, _BatchNorm), network(x)
    keys = list(network.state_dict())
    convert_batchnorm(network, limits=(3.0, 5.0))
    assert count(network, OURS) == layers > 3
    assert count(network, _BatchNorm) == 0
    assert list(network.state_dict()) == keys
    torch.testing.assert_close(network(x), expected)
    again = copy.deepcopy(network)
    program = torch.export.export(network, (x,))
    torch.testing.assert_close(program.module()(x), expected)
    fold_to_batchnorm(again)
    assert count(again, _BatchNorm) == layers
    torch.testing.assert_close(again(x), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_trained_compiled_it_is_trained(name):
    eager, shape = NETWORKS[name]()
    # A larger eps, as channels that hardly vary blow the last digit up from layer to layer.
    eager = convert_batchnorm(eager.double().train(), limits=(3.0, 5.0), momentum=0.1, eps=0.1)
    for layer in eager.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    compiled = copy.deepcopy(eager)
    # Of all backends the quickest that decides what to save for the backward pass.
    run = torch.compile(compiled, backend="aot_eager")
    for network, call in ((eager, eager), (compiled, run)):
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
        for _ in range(10):
            optimizer.zero_grad()
            call(torch.randn(4, *shape[1:], dtype=torch.float64)).square().mean().backward()
            optimizer.step()
    state, expected = compiled.state_dict(), eager.state_dict()
    torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_symbolic_traces_have_the_layers_as_leaves(name):
    network, x = built(name)
    convert_batchnorm(network, limits=(3.0, 5.0))
    traced = fx.symbolic_trace(network)
    leaves = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert leaves >= {name for name, layer in network.named_modules() if isinstance(layer, OURS)}
    torch.testing.assert_close(traced(x), network(x))


def test_features_are_extracted():
    feature_extraction = imported("torchvision.models.feature_extraction")
    network, x = built("resnet18")
    extract = feature_extraction.create_feature_extractor
    expected = extract(network, ["layer1"])(x)
    convert_batchnorm(network)
    torch.testing.assert_close(extract(network, ["layer1"])(x), expected)


def test_exported_it_is_the_graph_of_batch_normalization():
    def targets(network):
        program = torch.export.export(network.eval(), (torch.randn(2, 3, 8, 8),))
        return [node.target for node in program.graph.nodes if node.op == "call_function"]

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    expected = targets(network)
    assert targets(convert_batchnorm(network)) == expected


def test_quantized_after_export_without_folding():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's about itself
        pytest.importorskip("torchao.quantization.pt2e")
        from torchao.quantization.pt2e import quantizer
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        inductor = (
            quantizer.x86_inductor_quantizer
            if hasattr(quantizer, "x86_inductor_quantizer")
            else pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
        )
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        convert_batchnorm(network, limits=(3.0, 5.0))
        x = torch.randn(16, 3, 8, 8)
        network(x)
        network.eval()
        chosen = inductor.X86InductorQuantizer()
        chosen.set_global(inductor.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(torch.export.export(network, (x,)).module(), chosen)
        prepared(x)
        quantized = convert_pt2e(prepared)
        y = quantized(x)
    assert (y - network(x)).abs().mean() < 0.02 * network(x).abs().mean()
