"""Matrices of AnnData: what comes in is checked and ordered here, once.

Behind this door everything is arrays: a matrix and its genes' names.  What ``obs`` says of the
cells comes through `bioren.adata.obs`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from bioren.adata.columns import column_of
from bioren.adata.given import check_adata
from bioren.adata.missing import missing_message
from bioren.adata.on_disk import has_dask, lazily
from bioren.arrays.blocks import Block, is_lazy, on_host, row_blocks, stacked, to_dense
from bioren.arrays.shapes import CellsByDims, Positions
from bioren.arrays.survey import Survey, Surveyor
from bioren.wording import choices, listed

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "Cells",
    "Values",
    "check_corrected",
    "check_log_scale",
    "check_same_sum",
    "check_strength",
    "check_varies",
    "check_writable",
    "kept",
    "look_through",
    "matrix_of",
    "read_cells",
    "read_embedding",
    "read_matrix",
    "target_sum",
    "writable",
    "write_corrected",
]

#: No log-transformed expression reaches so far: exp(50) molecules do not fit into a cell.
LARGEST_LOG = 50.0

#: Entries of the rows in which a normalization is looked for.
SAMPLED_ENTRIES = 2**20

#: States are directions in an embedding; one dimension has no directions to tell apart.
MIN_DIMENSIONS = 2


class Values(NamedTuple):
    """What the values of a matrix are like, all of them.

    Attributes
    ----------
    missing
        Number of values that are NaN.
    infinite
        Number of values that are infinite.
    negative
        Whether there are values below 0.
    like_counts
        Whether they look like counts; see `check_log_scale`.
    empty
        Number of cells in which no value differs from 0.
    """

    missing: int
    infinite: int
    negative: bool
    like_counts: bool
    empty: int


class Cells(NamedTuple):
    """Expression as it is integrated.

    Attributes
    ----------
    x
        Matrix of shape ``(cells, genes)``; sparse, backed and dask ones stay what they are.
    values
        What its values are like.
    genes
        Name of each column.
    variable
        Columns of the genes in which states are sought and embeddings built.
    survey
        What else was found as the values were looked through; None: nothing.
    """

    x: Any
    values: Values
    genes: pd.Index
    variable: Positions
    survey: Survey | None = None

    def variable_matrix(self) -> Block:
        """Return the variable genes' columns, in memory, as an ndarray or in CSR form.

        Raises
        ------
        ValueError
            They are too few for an embedding, which has a dimension less than there are genes.
        """
        if len(self.variable) <= MIN_DIMENSIONS:
            marked = len(self.variable) < len(self.genes)
            msg = f"An embedding needs three genes or more, received {len(self.variable)}" + (
                f" marked in var['highly_variable'], of {len(self.genes)}." if marked else "."
            )
            raise ValueError(msg)
        if self.survey is not None:
            return self.survey.variable
        everything = len(self.variable) == len(self.genes)
        if everything and isinstance(self.x, np.ndarray | sparse.csr_matrix):
            return self.x
        return stacked(block[:, self.variable] for _, block in row_blocks(self.x))


def read_cells(
    adata: AnnData,
    layer: str | None = None,
    *,
    genes: pd.Index | None = None,
    allow_missing: bool = False,
    surveyed: Callable[[Any, Positions], Surveyor | None] = lambda x, variable: None,
) -> Cells:
    """Read the expression matrix.

    Parameters
    ----------
    adata
        Its genes marked in ``var["highly_variable"]`` are the variable ones; without that
        column, all are.
    layer
        Layer to read; None: ``adata.X``.
    genes
        Genes that are the variable ones, in this order; None: those that `adata` marks.
    allow_missing
        See `read_matrix`.
    surveyed
        Returns what else is to look at the matrix in the same pass, or None.

    Raises
    ------
    KeyError
        There is no such layer, or `genes` are missing.
    ValueError
        There are no cells or genes, gene names repeat, values are no finite numbers.
    """
    x = matrix_of(adata, layer)
    variable = _variable(adata, genes)
    surveyor = surveyed(x, variable)
    values = look_through(x, None if surveyor is None else surveyor.take)
    _check_finite(x, values, allow_missing=allow_missing)
    survey = None if surveyor is None else surveyor.found()
    return Cells(x, values, adata.var_names, variable, survey)


def _variable(adata: AnnData, genes: pd.Index | None) -> Positions:
    """Return the columns of the variable genes; see `read_cells`."""
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()
        msg = (
            f"{len(repeated)} gene names occur more than once: {listed(repeated)}. "
            "Call adata.var_names_make_unique() first."
        )
        raise ValueError(msg)
    if genes is not None:
        columns = adata.var_names.get_indexer(genes)
        if (columns < 0).any():
            msg = (
                f"{int((columns < 0).sum())} of the model's {len(genes)} genes are missing: "
                f"{listed(genes[columns < 0])}."
            )
            raise KeyError(msg)
        return columns
    if "highly_variable" not in adata.var:
        return np.arange(adata.n_vars)
    marked = column_of(adata.var, "highly_variable")
    return np.flatnonzero(marked.isin([True]))  # NaN is not True


def read_matrix(
    adata: AnnData, layer: str | None = None, *, allow_missing: bool = False
) -> tuple[Any, Values]:
    """Return ``adata.X``, or a layer, and what its values are like; all are looked at, once.

    Parameters
    ----------
    adata, layer
        What is read.
    allow_missing
        Whether values may be NaN, for the caller to see to.

    Raises
    ------
    TypeError
        `adata` is no AnnData.
    KeyError
        There is no such layer.
    ValueError
        There are no cells or genes, or values that are no finite numbers.
    """
    x = matrix_of(adata, layer)
    values = look_through(x)
    _check_finite(x, values, allow_missing=allow_missing)
    return x, values


def _check_finite(x: Any, values: Values, *, allow_missing: bool) -> None:
    """Refuse values that are infinite, or missing; see `read_matrix`."""
    if values.infinite:
        msg = (
            f"{values.infinite} values are infinite. They often come from a logarithm of 0: take "
            "np.log1p, or NaN for what was not measured."
        )
        raise ValueError(msg)
    if values.missing and not allow_missing:
        raise ValueError(missing_message(x))


def matrix_of(adata: AnnData, layer: str | None = None) -> Any:
    """Return ``adata.X``, or a layer, as a matrix whose rows can be read in blocks, unseen.

    Raises
    ------
    TypeError, KeyError, ValueError
        See `read_matrix`.
    """
    check_adata(adata)
    if layer is not None and layer not in adata.layers:
        msg = f"There is no layer {layer!r}; {choices('layers', layer, adata.layers)}."
        raise KeyError(msg)
    x = adata.X if layer is None else adata.layers[layer]
    if x is None:
        layers = listed(adata.layers)
        raise ValueError(f"adata.X is empty (None). Name a layer: layer=...; there are: {layers}.")
    if 0 in x.shape:
        raise ValueError(f"There is nothing to read: {x.shape[0]} cells x {x.shape[1]} genes.")
    return _readable(x)


def read_embedding(adata: AnnData, use_rep: str) -> CellsByDims:
    """Return ``adata.obsm[use_rep]``, shape ``(cells, dims)``, as floating point numbers.

    Raises
    ------
    KeyError
        There is no such embedding.
    ValueError
        It has no cells, less than two dimensions, or values that are no finite numbers.
    """
    if use_rep not in adata.obsm:
        msg = f"There is no embedding {use_rep!r}; {choices('obsm', use_rep, adata.obsm)}."
        raise KeyError(msg)
    z = on_host(adata.obsm[use_rep])
    z = z.toarray() if sparse.issparse(z) else np.asarray(z)
    if z.ndim != 2 or len(z) == 0 or z.shape[1] < MIN_DIMENSIONS:
        msg = (
            f"obsm[{use_rep!r}] has the shape {z.shape}; expected cells x dimensions, with at "
            f"least one cell and {MIN_DIMENSIONS} dimensions."
        )
        raise ValueError(msg)
    wrong = int((~np.isfinite(z)).sum())
    if wrong:
        msg = f"{wrong} values of obsm[{use_rep!r}] are NaN or infinite: compute it anew."
        raise ValueError(msg)
    return z.astype(z.dtype if z.dtype in (np.float32, np.float64) else np.float64, copy=False)


def check_strength(strength: float) -> None:
    """Refuse a share that is removed outside [0, 1].

    Raises
    ------
    TypeError
        It is no number.
    ValueError
        It lies outside.
    """
    if not isinstance(strength, int | float | np.number):
        raise TypeError(f"strength must be a number in [0, 1], received {strength!r}.")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], received {strength!r}.")


def check_corrected(adata: AnnData, corrected: str | None) -> None:
    """Refuse a choice of genes to be corrected that there is not.

    Raises
    ------
    ValueError
        It is none of ``"all"``, ``"highly_variable"`` and None.
    KeyError
        Variable genes are wanted, and none are marked.
    """
    if corrected not in ("all", "highly_variable", None):
        msg = f"corrected must be 'all', 'highly_variable' or None, received {corrected!r}."
        raise ValueError(msg)
    if corrected == "highly_variable" and "highly_variable" not in adata.var:
        msg = (
            "corrected='highly_variable' needs genes that are marked, and there is no "
            "var['highly_variable']: call sc.pp.highly_variable_genes(adata, batch_key=...) first."
        )
        raise KeyError(msg)


def write_corrected(
    adata: AnnData, key: str, x: Any, *, variable_genes: pd.Index | None = None
) -> None:
    """Write corrected expression: a layer, or of variable genes alone an entry of ``obsm``.

    Parameters
    ----------
    adata
        What `writable` returned.
    key
        Name of the layer, and of the record in ``uns``, which there is.
    x
        Shape ``(cells, genes)``, or ``(cells, variable_genes)``; None: nothing is written.
    variable_genes
        Their names, if it is expression of variable genes.
    """
    if x is None:
        return
    if variable_genes is None:
        adata.layers[key] = kept(x, adata)
        return
    adata.obsm[f"{key}_corrected"] = kept(x, adata)
    adata.uns[key]["variable_genes"] = variable_genes.to_numpy(dtype=object)


def check_writable(adata: AnnData, *, copy: bool) -> None:
    """Refuse what results cannot be written to, before any work is done; see `writable`.

    Raises
    ------
    TypeError
        `adata` is no AnnData.
    ValueError
        It is a view of a backed file.

    Warns
    -----
    UserWarning
        It is backed, and its results cannot be lazy.
    """
    check_adata(adata)
    if adata.isbacked and adata.is_view and not copy:
        msg = (
            "adata is a view of a backed file, to which nothing can be written. "
            "Pass adata.to_memory(), or copy=True."
        )
        raise ValueError(msg)
    if adata.isbacked and not copy and not has_dask():
        msg = (
            "adata is backed, but corrected expression is held in memory, as dask is missing: "
            "pip install 'bioren[dask]'."
        )
        warnings.warn(msg, stacklevel=3)


def writable(adata: AnnData, *, copy: bool) -> AnnData:
    """Return what results are written to: `adata` itself, or a copy, in memory if it is backed.

    A view is made an AnnData of its own first, so that its parent stays as it is.  Layers of a
    backed AnnData live outside its file, which stays as it is.
    """
    if copy:
        return adata.to_memory() if adata.isbacked else adata.copy()
    if adata.is_view:
        adata.obs_names = adata.obs_names  # any assignment to a view gives it data of its own
    return adata


def kept(x: Any, adata: AnnData) -> Any:
    """Return results as `adata` keeps them: what it cannot read again is computed.

    Parameters
    ----------
    x
        A dask array, if what it was made of is lazy or backed; or an array in memory.
    adata
        What `writable` returned.
    """
    held = (adata.X, *adata.layers.values())
    return x if not is_lazy(x) or adata.isbacked or any(map(is_lazy, held)) else x.compute()


def check_log_scale(values: Values) -> None:
    """Refuse values that look like counts rather than like log-expression.

    Values above 1 are whole numbers for the most part (some counts are estimates), or reach
    what no logarithm does.  Booleans pass, and so does a matrix with values below 0 (bulk,
    log-ratios, residuals).

    Raises
    ------
    ValueError
        The values look like counts.
    """
    if values.like_counts:
        msg = (
            "These values look like counts, or were not log-transformed. Normalize them first:\n"
            "    sc.pp.normalize_total(adata, target_sum=1e4)\n"
            "    sc.pp.log1p(adata)\n"
            "(or name the layer that holds log-expression: layer=...)."
        )
        raise ValueError(msg)


def check_varies(x: Block) -> None:
    """Refuse a matrix in memory whose rows are all the same.

    Raises
    ------
    ValueError
        They are.
    """
    first = to_dense(x[:1])
    if not any((to_dense(block) != first).any() for _, block in row_blocks(x)):
        msg = (
            f"No gene of the {x.shape[1]} that make the embedding differs between cells: every "
            "one is constant. Check adata.X, or the layer, and var['highly_variable']."
        )
        raise ValueError(msg)


def look_through(x: Any, also: Callable[[slice, Block], None] | None = None) -> Values:
    """Look at all values of a matrix of any kind that `row_blocks` reads, in one pass.

    Parameters
    ----------
    x
        The matrix.
    also
        Sees each block, and its rows, in the same pass, as long as no value is infinite.
    """
    missing, infinite, negative, n_above, n_whole, largest = 0, 0, False, 0, 0, 0.0
    empty = 0
    for rows, block in row_blocks(x):
        values = block if isinstance(block, np.ndarray) else block.data
        wrong = int((~np.isfinite(values)).sum())
        if wrong:
            of_block = int(np.isnan(values).sum())
            missing, infinite = missing + of_block, infinite + wrong - of_block
        empty += _count_empty(block)
        negative = negative or bool((values < 0).any())
        above = values[values > 1]
        n_above += above.size
        n_whole += int((above == np.floor(above)).sum())
        largest = max(largest, float(above.max(initial=0)))
        if also is not None and not infinite:
            also(rows, block)
    like_counts = not negative and (largest > LARGEST_LOG or 2 * n_whole > n_above)
    return Values(missing, infinite, negative, like_counts, empty)


def _count_empty(block: Block) -> int:
    """Return the number of rows in which no value differs from 0."""
    if isinstance(block, np.ndarray):
        return int((~block.any(axis=1)).sum())
    if not block.data.all():
        block = block.copy()
        block.eliminate_zeros()
    return int((np.diff(block.indptr) == 0).sum())


def target_sum(x: Any) -> float | None:
    """Return how many molecules per cell expression was brought to before the logarithm.

    Found in the first block of rows; None where they differ, as they do among some genes only.
    """
    for _, block in row_blocks(x, entries=SAMPLED_ENTRIES):
        if block.min() < 0:
            return None
        molecules = np.expm1(block) if isinstance(block, np.ndarray) else block.expm1()
        sums = np.asarray(molecules.sum(axis=1), dtype=np.float64).ravel()
        typical = float(np.median(sums))
        return round(typical, -1) if np.ptp(sums) <= 0.01 * typical else None
    return None


def check_same_sum(x: Any, expected: float | None) -> None:
    """Warn of log-expression that was brought to another number of molecules per cell."""
    found = target_sum(x)
    if found and expected and not 0.9 < found / expected < 1.1:
        msg = (
            f"The query was normalized to {found:,.0f} molecules per cell, the reference to "
            f"{expected:,.0f}. Normalize it anew from counts: "
            f"sc.pp.normalize_total(adata, target_sum={expected:g})."
        )
        warnings.warn(msg, stacklevel=4)


def _readable(x: Any) -> Any:
    """Return the matrix in a form whose rows can be read in blocks; no values change."""
    if np.dtype(x.dtype).kind not in "biuf":
        msg = (
            f"The values are of type {x.dtype}, expected numbers. Convert them: "
            "adata.X = adata.X.astype('float32')"
        )
        raise ValueError(msg)
    x = lazily(on_host(x))  # once, as it is read several times
    if sparse.issparse(x):
        x = sparse.csr_matrix(x)
        return x.astype(np.float32) if x.dtype == np.float16 else x  # SciPy knows no half
    if isinstance(x, np.matrix | pd.DataFrame):
        return np.asarray(x)
    return x
