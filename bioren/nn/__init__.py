"""Renormalisation layers for torch; this package never imports AnnData, scanpy or matplotlib.

`BatchRenorm1d` takes the place of ``torch.nn.BatchNorm1d``; `SampleRenorm1d` normalises every
cell by its own sample and bridges the samples to their population.  `functional` holds the same
as pure functions, `limits` the schedules of the clip.
"""

from bioren.nn import functional, limits
from bioren.nn.convert import convert_batchnorm, convert_sync, fold_to_batchnorm
from bioren.nn.diagnostics import LayerDiagnostics, Monitor
from bioren.nn.instance import InstanceRenorm1d, InstanceRenorm2d, InstanceRenorm3d
from bioren.nn.limits import PAPER, BySamples, ConstantLimits, LinearLimits, StepLimits
from bioren.nn.mixing import LinearMixing
from bioren.nn.renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    LazyBatchRenorm1d,
    LazyBatchRenorm2d,
    LazyBatchRenorm3d,
)
from bioren.nn.sample import SampleRenorm1d
from bioren.nn.sync import SyncBatchRenorm

__all__ = [
    "PAPER",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "BySamples",
    "ConstantLimits",
    "InstanceRenorm1d",
    "InstanceRenorm2d",
    "InstanceRenorm3d",
    "LayerDiagnostics",
    "LazyBatchRenorm1d",
    "LazyBatchRenorm2d",
    "LazyBatchRenorm3d",
    "LinearLimits",
    "LinearMixing",
    "Monitor",
    "SampleRenorm1d",
    "StepLimits",
    "SyncBatchRenorm",
    "convert_batchnorm",
    "convert_sync",
    "fold_to_batchnorm",
    "functional",
    "limits",
]
