"""Matrices that are computed chunk by chunk when they are read: dask's work, kept lazy.

What is made of a lazy matrix row by row is lazy as well; its chunks are those of the matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

from bioren.arrays.blocks import Block, as_block, gather_rows, is_lazy, row_blocks, stacked
from bioren.arrays.shapes import Positions

__all__ = ["by_rows", "columns_of", "empty_like", "rows_of"]


def by_rows(
    function: Callable[..., Block], x: Any, *of_cells: Any, n_columns: int, like: Block
) -> Any:
    """Return ``function(x, *of_cells)``: a dask array if `x` is one, else in memory.

    Parameters
    ----------
    function
        Takes some rows of all arrays, in memory, and returns as many; each depends on its own cell
        alone.
    x
        Matrix of shape ``(cells, genes)``, any kind that `row_blocks` reads.
    of_cells
        Arrays with a row per cell.
    n_columns
        Columns of the result.
    like
        What the result is like: an empty array, or matrix in CSR form.
    """
    if not is_lazy(x):
        return _in_memory(function, x, *of_cells, n_columns=n_columns, like=like)
    import dask.array as da
    from dask.delayed import delayed

    x = x.rechunk({1: -1})
    # Chunks of an array of one axis would be taken for those of the columns.
    two_axes = [array[:, None] if array.ndim == 1 else array for array in of_cells]
    chunks = x.chunks[0], -1
    parts = [
        array.rechunk(chunks) if is_lazy(array) else da.from_array(array, chunks, name=False)
        for array in two_axes
    ]

    n_axes = [array.ndim for array in of_cells]

    def of_chunk(chunk: Any, *given: np.ndarray, call: Callable[..., Block]) -> Block:
        parts = (part[:, 0] if n == 1 else part for part, n in zip(given, n_axes, strict=True))
        return _in_memory(call, as_block(chunk), *parts, n_columns=n_columns, like=like)

    # Delayed, what the function holds is in the graph once, and not looked through to name it.
    once = delayed(function, traverse=False, pure=False)
    return da.map_blocks(
        of_chunk,
        x,
        *parts,
        call=once,
        chunks=(x.chunks[0], (n_columns,)),
        dtype=like.dtype,
        meta=like,
    )


def _in_memory(
    function: Callable[..., Block], x: Any, *of_cells: np.ndarray, n_columns: int, like: Block
) -> Block:
    found = (
        (rows, function(block, *(array[rows] for array in of_cells)))
        for rows, block in row_blocks(x)
    )
    if sparse.issparse(like):
        if x.shape[0] == 0:  # a chunk may be empty
            return sparse.csr_matrix((0, n_columns), dtype=like.dtype)
        return stacked(block for _, block in found)
    out = np.empty((x.shape[0], n_columns), dtype=like.dtype)
    for rows, block in found:
        out[rows] = block
    return out


def rows_of(x: Any, cells: Positions) -> Any:
    """Return some rows, given in ascending order: lazy if `x` is, else in memory."""
    return x[cells] if is_lazy(x) else gather_rows(x, cells)


def columns_of(x: Any, genes: Positions | slice) -> Any:
    """Return some columns of any matrix that `row_blocks` reads: lazy if `x` is, else in memory."""
    if not is_lazy(x):
        return stacked(block[:, genes] for _, block in row_blocks(x))
    n_columns = len(range(x.shape[1])[genes]) if isinstance(genes, slice) else len(genes)
    like = empty_like(x, x.dtype)
    return by_rows(lambda block: block[:, genes], x, n_columns=n_columns, like=like)


def empty_like(x: Any, dtype: np.dtype) -> Block:
    """Return an empty matrix, sparse if `x` is: a SciPy matrix, one on disk, or a lazy one."""
    example = x._meta if is_lazy(x) else x
    is_sparse = sparse.issparse(example) or hasattr(example, "format")
    return sparse.csr_matrix((0, 0), dtype=dtype) if is_sparse else np.empty((0, 0), dtype)
