"""Values that were not measured: how many there are, and what stands for them in a search."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from bioren.arrays.blocks import Block, row_blocks, stacked, to_dense
from bioren.arrays.shapes import CountBySamplesAndGenes, SampleCodes, SamplesByGenes

__all__ = ["count_empty", "count_measured", "filled"]


def count_empty(x: Any) -> int:
    """Return the number of cells of which no gene was measured; `x` as for `count_measured`."""
    return sum(int(np.isnan(to_dense(block)).all(axis=1).sum()) for _, block in row_blocks(x))


def count_measured(x: Any, codes: SampleCodes, n_samples: int) -> CountBySamplesAndGenes:
    """Return in how many cells of each sample each gene was measured, ``(samples, genes)``.

    Parameters
    ----------
    x
        Matrix of shape ``(cells, genes)``, any kind that `row_blocks` reads; NaN stands for what
        was not measured.
    codes, n_samples
        Sample of each cell, and their number.
    """
    missing = np.zeros((n_samples, x.shape[1]), dtype=np.int64)
    for rows, block in row_blocks(x):
        cells, genes = np.nonzero(np.isnan(to_dense(block)))
        np.add.at(missing, (codes[rows][cells], genes), 1)
    return np.bincount(codes, minlength=n_samples)[:, None] - missing


def filled(x: Any, codes: SampleCodes, table: SamplesByGenes) -> Block:
    """Return a matrix in memory with a number of its sample and gene where a value is missing.

    Parameters
    ----------
    x, codes
        As for `count_measured`.
    table
        The numbers, shape ``(samples, genes)``.
    """

    def filled_block(block: Block, samples: SampleCodes) -> Block:
        if isinstance(block, np.ndarray):
            return np.where(np.isnan(block), table[samples].astype(block.dtype), block)
        sample = np.repeat(samples, np.diff(block.indptr))
        known = table[sample, block.indices].astype(block.dtype)
        data = np.where(np.isnan(block.data), known, block.data)
        return sparse.csr_matrix((data, block.indices, block.indptr), shape=block.shape)

    return stacked(filled_block(block, codes[rows]) for rows, block in row_blocks(x))
