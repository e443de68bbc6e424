"""From counts to the log-expression that integration expects, in scanpy's usual steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bioren.cells import looks_like_counts

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["mark_variable_genes", "normalize_counts"]

#: Molecules per cell after normalisation.
TARGET_SUM = 1e4

#: Samples of fewer cells have no say in which genes vary.
FEWEST_CELLS = 20


def normalize_counts(adata: AnnData) -> bool:
    """Bring counts to 10,000 per cell and take ``log(1 + x)``; log-expression is left alone.

    The counts move to ``layers["counts"]``.

    Returns
    -------
    bool
        Whether the values were counts.

    Raises
    ------
    ValueError
        Cells without any count; or the layer ``"counts"`` is taken.
    """
    import numpy as np
    import scanpy as sc

    if not looks_like_counts(adata.X):
        return False
    empty = int((np.asarray(adata.X.sum(axis=1)).ravel() == 0).sum())
    if empty:
        msg = f"{empty} cells have no counts at all. Filter them: sc.pp.filter_cells(min_counts=1)."
        raise ValueError(msg)
    if "counts" in adata.layers:
        raise ValueError("X holds counts, and so would layers['counts'], which exists. Rename it.")
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=TARGET_SUM)
    sc.pp.log1p(adata)
    return True


def mark_variable_genes(adata: AnnData, batch_key: str, n_genes: int) -> bool:
    """Mark genes that vary within samples in ``var["highly_variable"]``.

    Nothing is done where genes are marked already or are not more than `n_genes`.

    Returns
    -------
    bool
        Whether genes were marked now.
    """
    import scanpy as sc

    if "highly_variable" in adata.var or adata.n_vars <= n_genes:
        return False
    cells = adata.obs[batch_key].value_counts()
    large = adata.obs[batch_key].isin(cells.index[cells >= FEWEST_CELLS]).to_numpy(dtype=bool)
    if large.any():
        view = adata[large]
        marked = sc.pp.highly_variable_genes(
            view, n_top_genes=n_genes, batch_key=batch_key, inplace=False
        )
    else:
        marked = sc.pp.highly_variable_genes(adata, n_top_genes=n_genes, inplace=False)
    adata.var["highly_variable"] = marked["highly_variable"].reindex(adata.var_names).to_numpy()
    return True
