import numpy as np
import pytest
import torch
from networks import expression, started
from numpy.testing import assert_allclose, assert_array_equal

from bioren import AffineBridge, Moments
from bioren.network.bridge_network import BridgeNetwork, LearnedBridge


@pytest.fixture
def example():
    x, codes = expression()
    network, bridged, loadings = started(x, codes)
    network.eval()
    return network, torch.tensor(x.toarray()), torch.tensor(codes), bridged, loadings


def scrambled(network, seed=0):
    """Give every learned parameter a value, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


# The start


@torch.no_grad()
def test_at_the_start_the_embedding_is_the_principal_components(example):
    network, x, codes, bridged, loadings = example
    assert_allclose(network.encode(x, codes), bridged @ loadings, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_at_the_start_decoding_goes_back_through_the_components(example):
    network, x, codes, bridged, loadings = example
    mean = Moments.of(x).mean.numpy()
    expected = mean + bridged @ loadings @ loadings.T
    z = network.encode(x, codes)
    assert_allclose(network.decode(z), expected, rtol=1e-3, atol=1e-3)
    assert_allclose(network.decode(z, codes), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_at_the_start_the_loss_is_what_the_components_leave(example):
    network, x, codes, bridged, loadings = example
    left = ((bridged - bridged @ loadings @ loadings.T) ** 2).sum(axis=1)
    total = Moments.of(x).var().sum().item()
    assert_allclose(network(x, codes), left / total, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_constant_expression_is_finite():
    samples = Moments.by_group(np.ones((6, 4)), np.arange(6) % 2, 2)
    network = BridgeNetwork(4, 2, 2, 8)
    network.start_from(samples, samples.pooled(), np.eye(4, 2))
    error = network.eval()(torch.ones(6, 4), torch.arange(6) % 2)
    assert_array_equal(error, 0)


# What knows the samples


@torch.no_grad()
def test_the_encoder_hears_of_samples_by_the_input_bridge_alone(example):
    network, *_ = example
    scrambled(network)
    mean, bridge = network.center, AffineBridge(network.input_scale, network.input_shift)
    # The cell of any sample that looks the same after its bridge has the same embedding.
    there = [bridge.invert()[s].apply(mean + 0.3) for s in range(3)]
    z = network.encode(torch.stack(there), torch.arange(3))
    assert_allclose(z, z[:1].expand(3, -1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_decoding_without_a_sample_is_decoding_in_the_reference(example):
    network, x, codes, _, _ = example
    z = network.encode(x, codes)
    scrambled(network)
    for bridge in (network.hidden_bridge, network.output_bridge):
        bridge.set_reference(np.array([False, True, False]))
    neutral = network.decode(z)
    assert_allclose(network.decode(z, torch.ones_like(codes)), neutral, rtol=1e-4, atol=1e-4)
    assert not np.allclose(network.decode(z, torch.zeros_like(codes)), neutral, atol=0.01)


@torch.no_grad()
@pytest.mark.parametrize("in_reference", [None, [True, False, True, False]])
def test_learned_bridges_are_the_identity_on_the_references_average(in_reference):
    bridge = scrambled(LearnedBridge(5, 4, step=0.5))
    bridge.set_reference(np.array([False, False, False, True]))
    bridge.set_reference(None if in_reference is None else np.array(in_reference))
    members = np.flatnonzero([True] * 4 if in_reference is None else in_reference)
    zero, one = torch.zeros(4, 5), torch.ones(4, 5)
    d = bridge(zero, torch.arange(4))
    r = bridge(one, torch.arange(4)) - d
    assert_allclose(d[members].mean(dim=0), 0, atol=1e-6)
    assert_allclose(r[members].log().mean(dim=0), 0, atol=1e-6)
    assert (d.abs() > 1e-3).any()
    assert_array_equal(bridge(one, None), one)


def test_learned_bridges_start_as_the_identity():
    x = torch.randn(4, 5)
    assert_array_equal(LearnedBridge(5, 3)(x, torch.tensor([0, 2, 1, 0])).detach(), x)


# Modes


@torch.no_grad()
def test_evaluation_changes_no_state_and_sees_each_cell_alone(example):
    network, x, codes, _, _ = example
    scrambled(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    z = network.encode(x, codes)
    network.decode(z, codes)
    network(x, codes)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    for i in (0, 5, 100):
        assert_allclose(network.encode(x[i : i + 1], codes[i : i + 1])[0], z[i], atol=1e-4)
    order = torch.arange(len(x)).flip(0)
    assert_allclose(network.encode(x[order], codes[order]), z[order], atol=1e-4)


def test_training_leaves_the_input_bridge_as_it_is(example):
    network, x, codes, _, _ = example
    before = network.input_scale.clone(), network.input_shift.clone()
    network.train()
    network(x, codes).mean().backward()
    assert torch.equal(network.input_scale, before[0])
    assert torch.equal(network.input_shift, before[1])
    assert network.encoder[1].training
    assert network.encoder[1].num_batches_tracked == 1


def test_what_is_learned_has_a_gradient(example):
    network, x, codes, _, _ = example
    scrambled(network).train()
    network(x, codes).mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert not network.components.requires_grad
