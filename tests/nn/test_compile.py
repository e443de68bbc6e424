import copy

import pytest
import torch

from bioren.nn import BatchRenorm1d, SampleRenorm1d


@pytest.mark.parametrize(
    ("layer", "codes"),
    [(BatchRenorm1d(4, limits=(3.0, 5.0)), ()), (SampleRenorm1d(4, 2), (torch.arange(6) % 2,))],
    ids=["batch", "sample"],
)
def test_training_compiles_into_one_graph(layer, codes):
    eager = copy.deepcopy(layer)
    # Tracing alone, as making kernels takes too long here.
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x = torch.randn(6, 4)
    torch.testing.assert_close(compiled(x, *codes), eager(x, *codes))
    torch.testing.assert_close(layer.state_dict(), eager.state_dict())
