import pytest
import torch

from bioren.nn import BatchRenorm1d, SampleRenorm1d

# Tensors of the meta device have no values: whatever would make a GPU wait for one fails here.


@pytest.mark.parametrize("momentum", [0.01, None])
@pytest.mark.parametrize("training", [True, False])
def test_batch_renorm_reads_no_value(momentum, training):
    layer = BatchRenorm1d(3, momentum=momentum, device="meta").train(training)
    assert layer(torch.empty(6, 3, device="meta")).shape == (6, 3)


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
