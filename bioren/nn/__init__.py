"""Renormalization layers for torch; this package never imports AnnData, scanpy or matplotlib.

`BatchRenorm1d` takes the place of ``torch.nn.BatchNorm1d``; `SampleRenorm1d` normalizes every
cell by its own sample and bridges the samples to their population.  `functional` holds the same
as pure functions, `schedules` what may change over the training.
"""

from bioren.nn import functional, schedules
from bioren.nn.batch_renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    LazyBatchRenorm1d,
    LazyBatchRenorm2d,
    LazyBatchRenorm3d,
)
from bioren.nn.convert import convert_batchnorm, convert_sync, fold_to_batchnorm
from bioren.nn.instance import InstanceRenorm1d, InstanceRenorm2d, InstanceRenorm3d
from bioren.nn.monitor import LayerDiagnostics, Monitor
from bioren.nn.sample import SampleRenorm1d
from bioren.nn.schedules import (
    CROSSQ,
    PAPER,
    BySamples,
    ConstantLimits,
    LinearLimits,
    LinearMixing,
    StepLimits,
)
from bioren.nn.sync import SyncBatchRenorm

__all__ = [
    "CROSSQ",
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
    "schedules",
]
