"""From counts to the log-expression that integration expects, in scanpy's usual steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from bioren.adata.matrix import look_through
from bioren.adata.obs import read_batches
from bioren.arrays.groups import BatchKey
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import BoolPerGene, CountPerSample, SampleCodes

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["mark_variable_genes", "normalize_counts"]

#: Molecules per cell after normalization.
TARGET_SUM = 1e4

#: Samples of fewer cells have no say in which genes vary.
MIN_CELLS = 20


def normalize_counts(adata: AnnData, target_sum: float = TARGET_SUM) -> bool:
    """Bring counts to a sum per cell and take ``log(1 + x)``; log-expression is left alone.

    The counts move to ``layers["counts"]``.

    Returns
    -------
    bool
        Whether the values were counts.

    Raises
    ------
    ValueError
        Cells without any count; or ``layers["counts"]`` holds something else.
    """
    import scanpy as sc

    if not look_through(adata.X).like_counts:
        return False
    empty = int((np.asarray(adata.X.sum(axis=1)).ravel() == 0).sum())
    if empty:
        msg = (
            f"{empty} of {adata.n_obs} cells have no counts at all. Remove them first: "
            "sc.pp.filter_cells(adata, min_counts=1)."
        )
        raise ValueError(msg)
    if "counts" in adata.layers and not _same(adata.layers["counts"], adata.X):
        msg = (
            "X holds counts, which would be kept in layers['counts'], but that layer exists and "
            "holds other values. Rename it, or delete it."
        )
        raise ValueError(msg)
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=target_sum)
    sc.pp.log1p(adata)
    return True


def mark_variable_genes(
    adata: AnnData, batch_key: BatchKey, n_genes: int, *, layer: str | None = None
) -> bool:
    """Mark genes that vary within samples in ``var["highly_variable"]``.

    By scanpy's dispersion; among values below 0, of which it knows none, by variance.
    Nothing is done where genes are marked already or are not more than `n_genes`.

    Parameters
    ----------
    adata
        Log-expression.
    batch_key
        Column, or columns, of ``adata.obs`` that say which sample a cell is from.
    n_genes
        How many genes are marked.
    layer
        Layer to read; None: ``adata.X``.

    Returns
    -------
    bool
        Whether genes were marked now.
    """
    if "highly_variable" in adata.var or adata.n_vars <= n_genes:
        return False
    x = adata.X if layer is None else adata.layers[layer]
    codes = read_batches(adata, batch_key, single=True).codes
    cells = np.bincount(codes)
    if x.min() < 0:
        variance = Moments.by_group(x, codes, len(cells)).var()  # samples x genes
        within = variance[cells >= min(MIN_CELLS, cells.max())].mean(axis=0)
        marked = np.argsort(np.argsort(-within)) < n_genes
    else:
        marked = _dispersed(x, codes, cells, n_genes=n_genes, log1p=adata.uns.get("log1p"))
    adata.var["highly_variable"] = marked
    return True


def _dispersed(
    x: Any, codes: SampleCodes, cells: CountPerSample, *, n_genes: int, log1p: Any
) -> BoolPerGene:
    """Return which genes scanpy finds variable by batch."""
    import scanpy as sc
    from anndata import AnnData

    large = cells[codes] >= MIN_CELLS
    by_sample = bool(large.any())
    if by_sample:
        x, codes = x[large], codes[large]
    # scanpy tidies the columns of what it is given, so it gets an AnnData of its own.
    source = AnnData(
        x,
        obs=pd.DataFrame({"sample": pd.Categorical(codes)}, index=_numbers(x.shape[0])),
        var=pd.DataFrame(index=_numbers(x.shape[1])),
        uns={} if log1p is None else {"log1p": log1p},
    )
    table = sc.pp.highly_variable_genes(
        source, n_top_genes=n_genes, batch_key="sample" if by_sample else None, inplace=False
    )
    return table.loc[source.var_names, "highly_variable"].to_numpy(dtype=bool)


def _numbers(n: int) -> pd.Index:
    return pd.RangeIndex(n).astype(str)


def _same(a: Any, b: Any) -> bool:
    if sparse.issparse(a) or sparse.issparse(b):
        return bool((sparse.csr_matrix(a) != sparse.csr_matrix(b)).nnz == 0)
    return np.array_equal(a, b)
