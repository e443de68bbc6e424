"""Row blocks of a cells x genes matrix, whatever holds it.

NumPy, SciPy CSR and CSC, dask and CuPy arrays, matrices of a backed AnnData and HDF5 datasets are
read a block of rows at a time.  Sparse stays sparse; a block is small enough to be made dense, but
for chunks of dask that are larger: each chunk is computed once, and as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

from bioren.arrays.shapes import Positions

__all__ = [
    "BLOCK_ENTRIES",
    "Block",
    "Stack",
    "as_block",
    "check_matrix",
    "gather_rows",
    "is_lazy",
    "on_host",
    "row_blocks",
    "spaced_rows",
    "stacked",
    "to_dense",
]

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
    if is_lazy(x):
        yield from _computed_blocks(x, step)
        return
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        yield rows, as_block(x[rows])


def check_matrix(x: Any) -> None:
    """Raise ValueError unless `x` has two dimensions."""
    if len(x.shape) != 2:
        msg = f"Expected a matrix of cells x genes, received an array of shape {tuple(x.shape)}."
        raise ValueError(msg)


def is_lazy(x: Any) -> bool:
    """Return whether `x` is a dask array, computed chunk by chunk when it is read."""
    return hasattr(x, "__dask_graph__")


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


def stacked(blocks: Iterable[Block]) -> Block:
    """Return the blocks one below the other; they are read in turn and never held twice."""
    stack = Stack()
    for block in blocks:
        stack.append(block)
    return stack.whole()


def to_dense(block: Block) -> np.ndarray:
    """Return the block as an ndarray."""
    return np.asarray(block) if isinstance(block, np.ndarray) else block.toarray()


def _row_sliceable(x: Any) -> Any:
    if getattr(x, "format", None) == "csc":
        # One conversion of equal size; slicing rows of CSC would scan it for every block.
        return (x if sparse.issparse(x) else x.to_memory()).tocsr()
    return x.tocsr() if sparse.issparse(x) and x.format != "csr" else x


def spaced_rows(n_rows: int, at_most: int) -> Positions:
    """Return positions of some rows, evenly spaced from the first to the last; of few, of all."""
    return np.unique(np.linspace(0, n_rows - 1, min(n_rows, at_most)).astype(np.intp))


def gather_rows(x: Any, cells: Positions) -> Block:
    """Return some rows of any matrix that `row_blocks` reads, given in ascending order."""
    return stacked(
        block[cells[(cells >= rows.start) & (cells < rows.stop)] - rows.start]
        for rows, block in row_blocks(x)
    )


def _computed_blocks(x: Any, step: int) -> Iterator[tuple[slice, Block]]:
    """Yield blocks of a dask array, cut as those of a matrix in memory, whatever its chunks.

    Sums over blocks are then the same to the last bit.
    """
    start, rest = 0, list[Block]()
    missing = step  # rows until `rest` is a block
    for block in _computed(x, step):
        at = 0
        while block.shape[0] - at >= missing:
            whole = missing == block.shape[0]  # then there is nothing to copy
            rest.append(block if whole else block[at : at + missing])
            yield slice(start, start + step), stacked(rest)
            at, start, rest, missing = at + missing, start + step, [], step
        if at < block.shape[0]:
            rest.append(block[at:])
            missing -= block.shape[0] - at
    if rest:
        yield slice(start, x.shape[0]), stacked(rest)


def _computed(x: Any, step: int) -> Iterator[Block]:
    """Yield a dask array's chunks from top to bottom; the next is computed meanwhile."""
    whole = list(_chunk_slices(x, step))
    with ThreadPoolExecutor(1) as worker:
        ahead = [worker.submit(as_block, x[rows]) for rows in whole[:1]]
        for number in range(1, len(whole) + 1):
            block = ahead.pop().result()
            ahead += [worker.submit(as_block, x[rows]) for rows in whole[number : number + 1]]
            yield block


def _chunk_slices(x: Any, step: int) -> Iterator[slice]:
    """Yield rows that are whole chunks: as many as `step` holds, or one that is larger."""
    start = stop = 0
    for n_rows in x.chunks[0]:
        if stop > start and stop + n_rows - start > step:
            yield slice(start, stop)
            start = stop
        stop += n_rows
    if stop > start:
        yield slice(start, stop)


class Stack:
    """Blocks one below the other, as they come."""

    def __init__(self) -> None:
        self.first: Block | None = None
        self.parts: list[_Growing] = []

    def append(self, block: Block) -> None:
        """Add a block; all have as many columns, and are dense, or sparse."""
        if self.first is None:
            self.first = block
            return
        if not self.parts:
            self.parts = [_Growing(part) for part in _parts(self.first)]
        for part, more in zip(self.parts, _parts(block), strict=True):
            part.append(more)

    def whole(self) -> Block:
        """Return all that was added; there was something."""
        if self.first is None:
            raise ValueError("There are no blocks.")
        if not self.parts:
            return self.first
        if len(self.parts) == 1:
            return self.parts[0].whole()
        data, indices, lengths = (part.whole() for part in self.parts)
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        shape = len(lengths), self.first.shape[1]
        return sparse.csr_matrix((data, indices, starts), shape=shape)


def _parts(block: Block) -> list[np.ndarray]:
    """Return the arrays that make up a block; those of blocks below each other are concatenated."""
    if isinstance(block, np.ndarray):
        return [block]
    rows = sparse.csr_matrix(block)
    return [rows.data, rows.indices, np.diff(rows.indptr)]


class _Growing:
    """Rows that grow at their end: memory is moved, not copied, as it gets larger."""

    def __init__(self, first: np.ndarray) -> None:
        self.rows = np.array(first, order="C")
        self.used = len(first)

    def append(self, more: np.ndarray) -> None:
        """Add rows."""
        used = self.used + len(more)
        if used > len(self.rows):
            self._resize(used + used // 4)
        self.rows[self.used : used] = more
        self.used = used

    def whole(self) -> np.ndarray:
        """Return all rows."""
        self._resize(self.used)
        return self.rows

    def _resize(self, n_rows: int) -> None:
        self.rows.resize((n_rows, *self.rows.shape[1:]), refcheck=False)
