"""A column of ``obs`` or ``var``, in memory."""

from __future__ import annotations

from typing import Any

import pandas as pd

__all__ = ["column_of"]


def column_of(frame: Any, key: str) -> pd.Series:
    """Return a column of ``adata.obs`` or ``adata.var``; of a lazy AnnData it is read now.

    Parameters
    ----------
    frame
        DataFrame, or the ``Dataset2D`` of `anndata.experimental.read_lazy`.
    key
        Name of a column that there is.
    """
    return frame[key] if isinstance(frame, pd.DataFrame) else frame[[key]].to_memory()[key]
