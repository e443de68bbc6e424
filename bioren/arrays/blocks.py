"""Row blocks of a cells x genes matrix, whatever holds it.

NumPy, SciPy CSR and CSC, dask and CuPy arrays, matrices of a backed AnnData and HDF5 datasets are
read a block of rows at a time.  Sparse stays sparse; a block is small enough to be made dense.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

from bioren.arrays.shapes import Positions

#: Rows in memory: an ndarray or a CSR matrix.
Block: TypeAlias = np.ndarray | sparse.csr_matrix

#: Entries of a block if it were dense: 64 MiB in double precision.
BLOCK_ENTRIES = 2**23


def row_blocks(x: Any, *, entries: int = BLOCK_ENTRIES) -> Iterator[tuple[slice, Block]]:
    """Yield ``(rows, block)`` from top to bottom, `block` being an ndarray or in CSR form.

    Parameters
    ----------
    x
        Matrix of shape ``(cells, genes)``.
    entries
        At most so many entries in a block, stored or not (at least one row).

    Raises
    ------
    ValueError
        `x` does not have two dimensions.
    """
    check_matrix(x)
    n_rows, n_columns = x.shape
    x = _row_sliceable(on_host(x))
    step = max(1, entries // max(1, n_columns))
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        yield rows, as_block(x[rows])


def check_matrix(x: Any) -> None:
    """Raise ValueError unless `x` has two dimensions."""
    if len(x.shape) != 2:
        msg = f"Expected a matrix of cells x genes, received an array of shape {tuple(x.shape)}."
        raise ValueError(msg)


def as_block(x: Any) -> Block:
    """Return rows `x` in memory, as an ndarray or a CSR matrix without duplicates."""
    if hasattr(x, "compute"):  # dask
        x = x.compute()
    x = on_host(x)
    if not sparse.issparse(x):
        return np.asarray(x)
    x = sparse.csr_matrix(x)
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    return x


def on_host(x: Any) -> Any:
    """Return a CuPy array or matrix as one of NumPy or SciPy, and anything else as it is."""
    return x.get() if type(x).__module__.split(".")[0] in ("cupy", "cupyx") else x


def stacked(blocks: list[Block]) -> Block:
    """Return the blocks one below the other."""
    if len(blocks) == 1:
        return blocks[0]
    return sparse.vstack(blocks, "csr") if sparse.issparse(blocks[0]) else np.concatenate(blocks)


def to_dense(block: Block) -> np.ndarray:
    """Return the block as an ndarray."""
    return np.asarray(block) if isinstance(block, np.ndarray) else block.toarray()


def _row_sliceable(x: Any) -> Any:
    if getattr(x, "format", None) == "csc":
        # One conversion of equal size; slicing rows of CSC would scan it for every block.
        return (x if sparse.issparse(x) else x.to_memory()).tocsr()
    return x.tocsr() if sparse.issparse(x) and x.format != "csr" else x


def gather_rows(x: Any, cells: Positions) -> Block:
    """Return some rows of any matrix that `row_blocks` reads, given in ascending order."""
    found = []
    for rows, block in row_blocks(x):
        inside = cells[(cells >= rows.start) & (cells < rows.stop)]
        found.append(block[inside - rows.start])
    return stacked(found)
