import pytest
import torch
from torch.utils.checkpoint import checkpoint

from bioren.nn import (
    PAPER,
    BatchRenorm2d,
    BySamples,
    InstanceRenorm2d,
    LinearMixing,
    SampleRenorm1d,
    StepLimits,
)

# Tensors of the meta device have no values: whatever would make a GPU wait for one fails here.


LAYERS = {
    "paper": lambda **of: BatchRenorm2d(3, **of),
    "constant": lambda **of: BatchRenorm2d(3, limits=(3.0, 5.0), **of),
    "plain": lambda **of: BatchRenorm2d(3, limits=(1.0, 0.0), **of),
    "mean over batches": lambda **of: BatchRenorm2d(3, momentum=None, **of),
    "jumps": lambda **of: BatchRenorm2d(3, limits=StepLimits(((3, 3.0, 5.0),)), **of),
    "rows": lambda **of: BatchRenorm2d(3, limits=BySamples(PAPER), initial="first_batch", **of),
    "deviations": lambda **of: BatchRenorm2d(3, moving="std", initial="debiased", **of),
    "mixing": lambda **of: BatchRenorm2d(3, mixing=LinearMixing(0, 9), **of),
    "learned": lambda **of: BatchRenorm2d(3, mixing="learned", **of),
    "averaged": lambda **of: BatchRenorm2d(3, average_backward=4, **of),
    "instances": lambda **of: InstanceRenorm2d(3, **of),
    "instances to the batch": lambda **of: InstanceRenorm2d(3, target="batch", **of),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_read_no_value(name, training):
    layer = LAYERS[name](device="meta").train(training)
    x = torch.empty(6, 3, 4, 4, device="meta", requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape


def test_masks_and_checkpoints_read_no_value():
    layer = BatchRenorm2d(3, initial="debiased", device="meta")
    x = torch.empty(6, 3, 4, 4, device="meta", requires_grad=True)
    mask = torch.empty(6, 4, 4, device="meta", dtype=torch.bool)
    assert layer(x, mask).shape == x.shape
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("momentum", [0.01, None])
@pytest.mark.parametrize("training", [True, False])
def test_sample_renorm_reads_no_value(momentum, training):
    layer = SampleRenorm1d(3, 2, momentum=momentum, device="meta").train(training)
    x = torch.empty(6, 3, device="meta")
    sample = torch.empty(6, device="meta", dtype=torch.int64)
    for call in (layer, layer.inverse, layer.to_reference):
        assert call(x, sample).shape == (6, 3)


def test_the_check_sees_a_value_being_read():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty((), device="meta").item()
