"""Batch effects removed, samples mapped onto a reference population: one affine bridge.

Names are imported when they are first used, so that ``import bioren`` costs nothing and
``bioren.nn`` needs neither AnnData nor scanpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bioren._version import __version__ as __version__

if TYPE_CHECKING:
    from bioren import datasets, nn
    from bioren import plotting as pl
    from bioren import preprocessing as pp
    from bioren import tools as tl
    from bioren.arrays.moments import Moments
    from bioren.bridge import AffineBridge
    from bioren.model.autoencoder import RenormAutoencoder, load
    from bioren.network.training import TrainingOptions
    from bioren.reference.population import Population
    from bioren.transformer import BridgeTransformer

__all__ = [
    "AffineBridge",
    "BridgeTransformer",
    "Moments",
    "Population",
    "RenormAutoencoder",
    "TrainingOptions",
    "datasets",
    "load",
    "nn",
    "pl",
    "pp",
    "tl",
]

_MODULES = {
    "datasets": "datasets",
    "nn": "nn",
    "pl": "plotting",
    "pp": "preprocessing",
    "tl": "tools",
}
_NAMES = {
    "AffineBridge": "bridge",
    "BridgeTransformer": "transformer",
    "Moments": "arrays.moments",
    "Population": "reference.population",
    "RenormAutoencoder": "model.autoencoder",
    "TrainingOptions": "network.training",
    "load": "model.autoencoder",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"bioren.{_MODULES[name]}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"bioren.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'bioren' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
