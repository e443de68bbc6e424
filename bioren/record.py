"""What a run leaves in ``adata.uns``: the batch effects themselves, and how they were found.

The one place that spells the slots of the record.  Everything survives h5ad and zarr.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bioren.alignment import Alignment
from bioren.annotations import Batches

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["diagnosis_table", "effects_table", "write_record"]

#: Entries of the record that are tables of samples x genes, as `Alignment` names them.
TABLES = ("r", "d", "standard_error", "removed")


def write_record(
    adata: AnnData,
    key: str,
    batches: Batches,
    genes: pd.Index,
    alignment: Alignment,
    settings: Mapping[str, Any],
) -> None:
    """Write ``uns[key]``; settings that are None or generators are left out: h5ad has neither."""
    record: dict[str, Any] = {
        "batch_key": _storable(batches.key),
        "samples": np.array(batches.names, dtype=object),
        "genes": np.array(genes.astype(str), dtype=object),
        "cells": np.bincount(batches.codes, minlength=len(batches.names)),
        "settings": {
            name: _storable(value)
            for name, value in settings.items()
            if value is not None and not isinstance(value, np.random.Generator)
        },
    }
    for name in TABLES:
        record[name] = getattr(alignment, name).astype(np.float32)
    adata.uns[key] = record


def effects_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return the record's effects, a row per sample and gene."""
    samples, genes = (list(map(str, record[name])) for name in ("samples", "genes"))
    table = {
        "sample": pd.Categorical(np.repeat(samples, len(genes)), categories=samples),
        "gene": np.tile(np.array(genes, dtype=object), len(samples)),
        "cells": np.repeat(record["cells"], len(genes)),
    }
    return pd.DataFrame(table | {name: np.ravel(record[name]) for name in TABLES})


def diagnosis_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return the record's signs of over-correction, a row per sample."""
    samples = pd.Index(list(map(str, record["samples"])), name="sample")
    return pd.DataFrame({"cells": record["cells"], **record["diagnosis"]}, index=samples)


def _storable(value: Any) -> Any:
    if not isinstance(value, tuple | list):
        return value
    return np.array(value, dtype=object if isinstance(value[0], str) else None)
