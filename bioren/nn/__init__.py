"""Renormalisation layers for torch; this package never imports AnnData, scanpy or matplotlib.

`BatchRenorm1d` takes the place of ``torch.nn.BatchNorm1d``; `SampleRenorm1d` normalises every
cell by its own sample and bridges the samples to their population.  `functional` holds the same
as pure functions, `limits` the schedules of the clip.
"""

from bioren.nn import functional, limits
from bioren.nn.limits import PAPER, ConstantLimits, LinearLimits
from bioren.nn.renorm import BatchRenorm1d
from bioren.nn.sample import SampleRenorm1d

__all__ = [
    "PAPER",
    "BatchRenorm1d",
    "ConstantLimits",
    "LinearLimits",
    "SampleRenorm1d",
    "functional",
    "limits",
]
