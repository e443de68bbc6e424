"""From counts to the log-expression that integration expects, in scanpy's usual steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from bioren.adata.matrix import Values, look_through
from bioren.adata.obs import read_batches
from bioren.arrays.apply import result_dtype
from bioren.arrays.blocks import Block, as_block, is_lazy, row_blocks, to_dense
from bioren.arrays.dispersion import most_dispersed
from bioren.arrays.groups import BatchKey
from bioren.arrays.lazy import by_rows, empty_like
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import SampleCodes

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["mark_variable_genes", "normalize_counts"]

#: Molecules per cell after normalization.
TARGET_SUM = 1e4

#: Samples of fewer cells have no say in which genes vary.
MIN_CELLS = 20


def normalize_counts(
    adata: AnnData, target_sum: float = TARGET_SUM, *, values: Values | None = None
) -> bool:
    """Bring counts to a sum per cell and take ``log(1 + x)``; log-expression is left alone.

    The counts move to ``layers["counts"]``.  Where they are lazy, so is what is made of them.

    Parameters
    ----------
    adata
        Counts in ``adata.X``, or log-expression.
    target_sum
        Sum per cell.
    values
        What ``adata.X`` is like; None: it is looked through.

    Returns
    -------
    bool
        Whether the values were counts.

    Raises
    ------
    ValueError
        Cells without any count; or ``layers["counts"]`` holds something else.
    """
    values = values or look_through(adata.X)
    if not values.like_counts:
        return False
    if values.empty:
        msg = (
            f"{values.empty} of {adata.n_obs} cells have no counts at all. Remove them first: "
            "sc.pp.filter_cells(adata, min_counts=1)."
        )
        raise ValueError(msg)
    if "counts" in adata.layers and not _same(adata.layers["counts"], adata.X):
        msg = (
            "X holds counts, which would be kept in layers['counts'], but that layer exists and "
            "holds other values. Rename it, or delete it."
        )
        raise ValueError(msg)
    if is_lazy(adata.X):
        adata.layers["counts"] = adata.X
        adata.X = _normalized_lazily(adata.X, target_sum)
        adata.uns["log1p"] = {"base": None}  # as scanpy notes it
        return True
    import scanpy as sc

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
    log, plain = _moments(x, codes, len(cells), base=adata.uns.get("log1p", {}).get("base"))
    if plain is None:
        within = log.var()[cells >= min(MIN_CELLS, cells.max())].mean(axis=0)
        marked = np.argsort(np.argsort(-within)) < n_genes
    elif (cells >= MIN_CELLS).any():
        marked = most_dispersed(plain[cells >= MIN_CELLS], n_genes)
    else:
        marked = most_dispersed(plain.pooled()[None], n_genes)
    adata.var["highly_variable"] = marked
    return True


def _moments(
    x: Any, codes: SampleCodes, n_samples: int, *, base: float | None
) -> tuple[Moments, Moments | None]:
    """Return moments by sample of log-expression, and of what it is the logarithm of, in one pass.

    None stands for the second where there are values below 0, which are no such logarithms.
    """
    log = Moments.empty((n_samples,), x.shape[1])
    plain: Moments | None = Moments.empty((n_samples,), x.shape[1])
    for rows, block in row_blocks(x):
        of_cells = codes[rows]
        log = log.merge(Moments.by_group(block, of_cells, n_samples))
        if plain is None or block.min() < 0:
            plain = None
            continue
        powers = block if base is None else block * np.log(base)
        powers = np.expm1(powers) if isinstance(powers, np.ndarray) else powers.expm1()
        plain = plain.merge(Moments.by_group(powers, of_cells, n_samples))
    return log, plain


def _normalized_lazily(x: Any, target_sum: float) -> Any:
    """Return ``log(1 + x * target_sum / sum of the row)`` of a dask array, chunk by chunk."""
    dtype = result_dtype(x)

    def normalized(block: Block) -> Block:
        total = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
        if isinstance(block, np.ndarray):
            return np.log1p(block * (target_sum / total)[:, None]).astype(dtype)
        per_value = np.repeat(target_sum / total, np.diff(block.indptr))
        data = np.log1p((block.data * per_value).astype(dtype))
        return sparse.csr_matrix((data, block.indices, block.indptr), shape=block.shape)

    return by_rows(normalized, x, n_columns=x.shape[1], like=empty_like(x, dtype))


def _same(a: Any, b: Any) -> bool:
    """Return whether two matrices, lazy or not, hold the same values; read in blocks."""
    if a.shape != b.shape:
        return False
    for rows, block in row_blocks(a):
        other = as_block(b[rows])
        if sparse.issparse(block) and sparse.issparse(other):
            if (block != other).nnz:
                return False
        elif not np.array_equal(to_dense(block), to_dense(other)):
            return False
    return True
