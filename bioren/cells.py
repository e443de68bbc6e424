"""The one door to AnnData: what comes in is checked and ordered here, once.

Behind this door everything is arrays: a matrix, a sample code per cell, names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from bioren.blocks import Block, row_blocks, stacked

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Batches", "Cells", "check_log_scale", "read_batches", "read_cells", "read_embedding"]

#: No log-transformed expression reaches so far: exp(50) molecules do not fit into a cell.
LARGEST_LOG = 50.0


class Batches(NamedTuple):
    """Which sample each cell belongs to.

    Attributes
    ----------
    key
        Column of ``adata.obs``.
    names
        Samples that have cells, in the order of the categories, or sorted.
    codes
        Position of each cell's sample in `names`, shape ``(cells,)``, int64.
    """

    key: str
    names: list[str]
    codes: np.ndarray

    def select(self, reference: str | Sequence[str] | None) -> np.ndarray | None:
        """Return which samples `reference` names, boolean of shape ``(samples,)``; None for None.

        Raises
        ------
        ValueError
            A name is not among the samples, or no name is given.
        """
        if reference is None:
            return None
        wanted = [reference] if isinstance(reference, str) else [str(name) for name in reference]
        unknown = [name for name in wanted if name not in self.names]
        if unknown or not wanted:
            msg = (
                f"reference={reference!r} must name samples of obs[{self.key!r}]: "
                f"{_listed(self.names)}. None stands for all of them."
            )
            raise ValueError(msg)
        return np.isin(self.names, wanted)


class Cells(NamedTuple):
    """Expression as it is integrated.

    Attributes
    ----------
    x
        Matrix of shape ``(cells, genes)``; sparse, backed and dask ones stay what they are.
    genes
        Name of each column.
    variable
        Columns of the genes in which states are sought and embeddings built.
    """

    x: Any
    genes: pd.Index
    variable: np.ndarray

    def variable_matrix(self) -> Block:
        """Return the variable genes' columns, in memory, as an ndarray or in CSR form."""
        everything = len(self.variable) == len(self.genes)
        if everything and isinstance(self.x, np.ndarray | sparse.csr_matrix):
            return self.x
        blocks = [block[:, self.variable] for _, block in row_blocks(self.x)]
        return stacked(blocks)


def read_batches(adata: AnnData, batch_key: str, *, names: Sequence[str] | None = None) -> Batches:
    """Read the sample of each cell.

    Parameters
    ----------
    adata
        Its ``obs[batch_key]`` may hold strings, categories, integers or booleans.
    batch_key
        Column of ``adata.obs``.
    names
        The samples that a fitted model knows; None: those found, at least two.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        Labels are missing; there is one sample only, or as many as cells; a sample is unknown.
    """
    labels = _column(adata, batch_key)
    missing = int(labels.isna().sum())
    if missing:
        msg = (
            f"obs[{batch_key!r}] has no label for {missing} of {len(labels)} cells. Drop them "
            f"(adata[adata.obs[{batch_key!r}].notna()]) or give them a sample of their own."
        )
        raise ValueError(msg)
    labels = labels.astype("category").cat.remove_unused_categories()
    found = [str(name) for name in labels.cat.categories]
    codes = labels.cat.codes.to_numpy().astype(np.int64)
    if names is None:
        _check_samples(batch_key, found, len(labels))
        return Batches(batch_key, found, codes)
    unknown = [name for name in found if name not in names]
    if unknown:
        msg = (
            f"obs[{batch_key!r}] holds samples that the model was not fitted on: "
            f"{_listed(unknown)}. It knows {_listed(names)}."
        )
        raise ValueError(msg)
    position = np.array([list(names).index(name) for name in found], dtype=np.int64)
    return Batches(batch_key, list(names), position[codes])


def read_cells(adata: AnnData, layer: str | None = None, *, genes: pd.Index | None = None) -> Cells:
    """Read the expression matrix.

    Parameters
    ----------
    adata
        Its genes marked in ``var["highly_variable"]`` are the variable ones; without that
        column, all are.
    layer
        Layer to read; None: ``adata.X``.
    genes
        Genes to read, in this order, all of them variable; None: all, in the order of `adata`.

    Raises
    ------
    KeyError
        There is no such layer, or `genes` are missing.
    ValueError
        There are no cells or genes, gene names repeat, values are not finite.
    """
    if layer is not None and layer not in adata.layers:
        msg = f"There is no layer {layer!r}; {_choices('layers', layer, adata.layers)}."
        raise KeyError(msg)
    x = adata.X if layer is None else adata.layers[layer]
    if x is None:
        raise ValueError("adata.X is empty (None): name the layer to read by layer=...")
    if 0 in x.shape:
        raise ValueError(f"There is nothing to read: {x.shape[0]} cells x {x.shape[1]} genes.")
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()
        msg = (
            f"{len(repeated)} gene names occur more than once: {_listed(repeated)}. "
            "Call adata.var_names_make_unique() first."
        )
        raise ValueError(msg)
    x = _readable(x)
    _check_finite(x)
    if genes is not None:
        columns = adata.var_names.get_indexer(genes)
        if (columns < 0).any():
            msg = (
                f"{int((columns < 0).sum())} of the model's {len(genes)} genes are missing: "
                f"{_listed(genes[columns < 0])}."
            )
            raise KeyError(msg)
        return Cells(x, adata.var_names, columns)
    variable = np.arange(x.shape[1])
    if "highly_variable" in adata.var:
        variable = np.flatnonzero(adata.var["highly_variable"].to_numpy(dtype=bool))
    if len(variable) < 2:
        msg = f"An embedding needs two genes, received {len(variable)}" + (
            " marked in var['highly_variable']." if "highly_variable" in adata.var else "."
        )
        raise ValueError(msg)
    return Cells(x, adata.var_names, variable)


def read_embedding(adata: AnnData, use_rep: str) -> np.ndarray:
    """Return ``adata.obsm[use_rep]``, shape ``(cells, dims)``, as floating point numbers.

    Raises
    ------
    KeyError
        There is no such embedding.
    ValueError
        It has no cells, no dimensions or values that are not finite.
    """
    if use_rep not in adata.obsm:
        msg = f"There is no embedding {use_rep!r}; {_choices('obsm', use_rep, adata.obsm)}."
        raise KeyError(msg)
    z = np.asarray(adata.obsm[use_rep])
    z = z.astype(z.dtype if z.dtype in (np.float32, np.float64) else np.float64, copy=False)
    if 0 in z.shape:
        raise ValueError(f"obsm[{use_rep!r}] is empty: its shape is {z.shape}.")
    _check_finite(z)
    return z


def check_log_scale(x: Any) -> None:
    """Refuse values that look like counts rather than like log-expression.

    Counts are whole numbers of at least 0, with some above 1, or reach values that no logarithm
    does.  Booleans and values below 0 (bulk, log-ratios, residuals) pass.

    Raises
    ------
    ValueError
        The values look like counts.
    """
    if looks_like_counts(x):
        msg = (
            "These values look like counts, or were not log-transformed. Normalise them first:\n"
            "    sc.pp.normalize_total(adata, target_sum=1e4)\n"
            "    sc.pp.log1p(adata)\n"
            "(or name the layer that holds log-expression: layer=...)."
        )
        raise ValueError(msg)


def looks_like_counts(x: Any) -> bool:
    """Return whether the values of a matrix look like counts; see `check_log_scale`."""
    whole, largest = True, 0.0
    for values in _stored_values(x):
        if values.size == 0:
            continue
        if values.min() < 0:
            return False
        largest = max(largest, float(values.max()))
        whole = whole and bool((values == np.floor(values)).all())
    return largest > LARGEST_LOG or (whole and largest > 1)


def _column(adata: AnnData, key: str) -> pd.Series:
    if key not in adata.obs:
        raise KeyError(f"There is no column {key!r}; {_choices('obs', key, adata.obs)}.")
    return adata.obs[key]


def _check_samples(batch_key: str, names: list[str], n_cells: int) -> None:
    if n_cells == 0:
        raise ValueError("adata has no cells.")
    if len(names) == 1:
        msg = (
            f"obs[{batch_key!r}] names one sample only, {names[0]!r}: there is no batch effect to "
            "remove. Choose another column, or go on without integration."
        )
        raise ValueError(msg)
    if len(names) == n_cells:
        msg = (
            f"obs[{batch_key!r}] has as many labels as cells ({n_cells}), such as {names[0]!r}: "
            "these look like barcodes. Name the column that says which sample a cell is from."
        )
        raise ValueError(msg)


def _readable(x: Any) -> Any:
    """Return the matrix in a form whose rows can be read in blocks; no values change."""
    if sparse.issparse(x):
        x = sparse.csr_matrix(x)
        return x.astype(np.float32) if x.dtype == np.float16 else x  # SciPy knows no half
    if isinstance(x, np.matrix | pd.DataFrame):
        return np.asarray(x)
    return x


def _check_finite(x: Any) -> None:
    wrong = sum(int((~np.isfinite(values)).sum()) for values in _stored_values(x))
    if wrong:
        msg = (
            f"{wrong} values are NaN or infinite. They often come from cells without counts "
            "(sc.pp.filter_cells(adata, min_counts=1)) or from a logarithm of negative values."
        )
        raise ValueError(msg)


def _stored_values(x: Any) -> Iterable[np.ndarray]:
    for _, block in row_blocks(x):
        yield block.data if sparse.issparse(block) else np.asarray(block)


def _choices(where: str, wanted: str, keys: Iterable[Any]) -> str:
    names = [str(key) for key in keys]
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}{where} holds: {_listed(names)}"


def _listed(names: Iterable[Any], most: int = 8) -> str:
    names = [str(name) for name in names]
    shown = ", ".join(names[:most]) or "nothing"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
