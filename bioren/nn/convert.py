"""Whole networks turned from batch normalisation to renormalisation and back.

Layers change their class and keep everything else: parameters, buffers, hooks, names, and whoever
refers to them.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bioren.nn.batch_renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    LazyBatchRenorm1d,
    LazyBatchRenorm2d,
    LazyBatchRenorm3d,
    _BatchRenorm,
    _LazyBatchRenorm,
)
from bioren.nn.schedules import PAPER, LimitSchedule
from bioren.nn.sync import SyncBatchRenorm, check_shareable

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
_OVER_ROWS = (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d)
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {renorm: bn for bn, renorm in _RENORM.items()}


def convert_batchnorm(
    module: Network,
    *,
    limits: LimitSchedule | tuple[float, float] = PAPER,
    **options: Any,
) -> Network:
    """Turn every batch normalisation inside of `module` into Batch Renormalization.

    Weights, statistics, eps, momentum, device, dtype and mode stay as they are, and so does the
    output in evaluation.  (Learned mixing is a new parameter, which an optimiser that exists
    already has to be given.)

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

    Raises
    ------
    TypeError, ValueError
        An option is unknown or out of range; then no layer has changed.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> type(convert_batchnorm(model)[1]).__name__
    'BatchRenorm2d'
    """
    found = [layer for layer in module.modules() if type(layer) in _RENORM]
    for kind in {_RENORM[type(layer)] for layer in found}:
        # Raises now if an option is wrong, before any layer has changed.
        kind(*(() if issubclass(kind, _LazyBatchRenorm) else (1,)), limits=limits, **options)
    own = {"momentum", "eps"} & options.keys()  # what batch normalisation has as well
    for layer in found:
        layer.__class__ = _RENORM[type(layer)]
        for name in own:
            setattr(layer, name, options[name])
        layer.set_options(  # type: ignore[operator]
            limits=limits, **{k: v for k, v in options.items() if k not in own}
        )
    _warn_of_subclasses(module, _BatchNorm, _RENORM.keys())
    return module


def convert_sync(module: Network, process_group: dist.ProcessGroup | None = None) -> Network:
    """Turn every Batch Renormalization inside of `module` into the one over all ranks.

    Parameters
    ----------
    module
        Any network, or a single layer.  Changed in place; batch normalisation, subclasses and
        layers that are synchronised already are left alone.
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
    lazy = [layer for layer in module.modules() if isinstance(layer, _LazyBatchRenorm)]
    if lazy:
        msg = "A lazy layer has to see an input before it can be synchronised; pass one first."
        raise ValueError(msg)
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchRenorm) and type(layer) in _OVER_ROWS
    ]
    for layer in layers:
        check_shareable(layer)
    for layer in layers:
        layer.folds_to = _PLAIN[type(layer)]  # type: ignore[assignment]
        layer.__class__ = SyncBatchRenorm
        layer.process_group = process_group  # type: ignore[assignment]
    _warn_of_subclasses(module, _BatchRenorm, _PLAIN.keys())
    return module


def fold_to_batchnorm(module: Network) -> Network:
    """Turn every Batch Renormalization inside of `module` into batch normalisation.

    For deployment: in evaluation the two are the same, and tools that fuse, quantise or export
    know batch normalisation.  What `convert_sync` made becomes what it was before.

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
        if type(layer) in _PLAIN:
            plain = vars(layer).pop("folds_to", _PLAIN[type(layer)])
            layer.drop_options()  # type: ignore[operator]
            layer.__class__ = plain
    _warn_of_subclasses(module, _BatchRenorm, ())
    return module


def _warn_of_subclasses(
    module: nn.Module, base: type[nn.Module], known: Collection[type[nn.Module]]
) -> None:
    """Warn of layers that may compute anything and were left alone."""
    unknown = {
        type(layer).__qualname__
        for layer in module.modules()
        if isinstance(layer, base) and type(layer) not in known
    }
    if unknown:
        names = ", ".join(sorted(unknown))
        warnings.warn(f"Left alone, as subclasses may compute anything: {names}.", stacklevel=3)
