"""Whole networks turned from batch normalisation to renormalisation and back.

Layers change their class and keep everything else: parameters, buffers, hooks, names, and whoever
refers to them.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bioren.nn.limits import PAPER, LimitSchedule
from bioren.nn.renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    LazyBatchRenorm1d,
    LazyBatchRenorm2d,
    LazyBatchRenorm3d,
    _BatchRenorm,
    _LazyBatchRenorm,
)
from bioren.nn.sync import SyncBatchRenorm

__all__ = ["convert_batchnorm", "convert_sync", "fold_to_batchnorm"]

Network = TypeVar("Network", bound=nn.Module)

_RENORM: dict[type[nn.Module], type[_BatchRenorm]] = {
    nn.BatchNorm1d: BatchRenorm1d,
    nn.BatchNorm2d: BatchRenorm2d,
    nn.BatchNorm3d: BatchRenorm3d,
    nn.LazyBatchNorm1d: LazyBatchRenorm1d,
    nn.LazyBatchNorm2d: LazyBatchRenorm2d,
    nn.LazyBatchNorm3d: LazyBatchRenorm3d,
    nn.SyncBatchNorm: SyncBatchRenorm,
}
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {renorm: bn for bn, renorm in _RENORM.items()}


def convert_batchnorm(
    module: Network,
    *,
    limits: LimitSchedule | tuple[float, float] = PAPER,
    **options: Any,
) -> Network:
    """Turn every batch normalisation inside of `module` into Batch Renormalization.

    Weights, statistics, eps, momentum, device, dtype and mode stay as they are, and so does the
    output in evaluation.

    torch's usual momentum is 0.1.  As the running statistics now lead the training, steadier ones
    are better where minibatches are small: the paper has 0.01 (``momentum=0.01``).

    Parameters
    ----------
    module
        Any network, or a single layer.  Changed in place.
    limits
        As in `BatchRenorm1d`.  A schedule goes on at the number of batches that a layer has
        seen, so that pretrained layers begin with the last limits.
    **options
        For all layers: momentum, eps, initial, moving, mixing or average_backward, as in
        `BatchRenorm1d`.

    Returns
    -------
    torch.nn.Module
        `module` itself.

    Warns
    -----
    UserWarning
        There are subclasses of torch's layers, which may compute anything; they are left alone.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> type(convert_batchnorm(model)[1]).__name__
    'BatchRenorm2d'
    """
    own = {"momentum", "eps"} & options.keys()  # what batch normalisation has as well
    unknown = set()
    for layer in module.modules():
        kind = _RENORM.get(type(layer))
        if kind is not None:
            layer.__class__ = kind
            for name in own:
                setattr(layer, name, options[name])
            layer.set_options(  # type: ignore[operator]
                limits=limits, **{k: v for k, v in options.items() if k not in own}
            )
        elif isinstance(layer, _BatchNorm):
            unknown.add(type(layer).__qualname__)
    if unknown:
        names = ", ".join(sorted(unknown))
        warnings.warn(f"Left alone, as no layer of torch itself: {names}.", stacklevel=2)
    return module


def convert_sync(module: Network, process_group: dist.ProcessGroup | None = None) -> Network:
    """Turn every Batch Renormalization inside of `module` into the one over all ranks.

    Parameters
    ----------
    module
        Any network, or a single layer.  Changed in place; batch normalisation is left alone.
    process_group
        The ranks; None for all.

    Returns
    -------
    torch.nn.Module
        `module` itself.

    Raises
    ------
    ValueError
        A lazy layer does not know its number of channels yet, or a layer averages its backward
        statistics.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchRenorm)]
    for layer in layers:
        if isinstance(layer, _LazyBatchRenorm):
            msg = "A lazy layer has to see an input before it can be synchronised; pass one first."
            raise ValueError(msg)
        SyncBatchRenorm.check_options(layer)  # type: ignore[arg-type]
    for layer in layers:
        layer.__class__ = SyncBatchRenorm
        layer.process_group = process_group  # type: ignore[assignment]
    return module


def fold_to_batchnorm(module: Network) -> Network:
    """Turn every Batch Renormalization inside of `module` into batch normalisation.

    For deployment: in evaluation the two are the same, and tools that fuse, quantise or export
    know batch normalisation.

    Parameters
    ----------
    module
        Any network, or a single layer.  Changed in place.

    Returns
    -------
    torch.nn.Module
        `module` itself.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchRenorm):
            layer.drop_options()
            layer.__class__ = _PLAIN[type(layer)]  # type: ignore[assignment]
    return module
