"""Each cell through the bridge of its own sample."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from bioren.arrays.blocks import Block, row_blocks, stacked
from bioren.arrays.shapes import CellsByGenes, SampleCodes, SamplesByGenes
from bioren.bridge import AffineBridge

__all__ = ["apply_by_sample", "result_dtype", "scale_by_sample", "scale_rows"]


def apply_by_sample(x: Any, codes: SampleCodes, bridges: AffineBridge) -> CellsByGenes:
    """Return ``scale[codes] * x + shift[codes]``, dense, shape ``(cells, genes)``.

    Parameters
    ----------
    x
        Matrix of shape ``(cells, genes)``, any kind that `row_blocks` reads.
    codes
        Sample of each cell.
    bridges
        ``scale`` and ``shift`` of shape ``(samples, genes)``.

    Returns
    -------
    numpy.ndarray
        float64 where `x` is, else float32; computed in float64.
    """
    out = np.empty(x.shape, dtype=result_dtype(x))
    of_zero = bridges.shift.astype(out.dtype)
    for rows, block in row_blocks(x):
        samples = codes[rows]
        scaled = scale_rows(block, bridges.scale, samples)
        if isinstance(scaled, np.ndarray):
            out[rows] = scaled + bridges.shift[samples]
            continue
        np.take(of_zero, samples, axis=0, out=out[rows])
        entries = scaled.tocoo()
        moved = entries.data + bridges.shift[samples[entries.row], entries.col]
        out[rows][entries.row, entries.col] = moved
    return out


def scale_by_sample(x: Any, codes: SampleCodes, scale: SamplesByGenes) -> Block:
    """Return ``scale[codes] * x``, in CSR form where `x` is sparse; dtype as `apply_by_sample`."""
    dtype = result_dtype(x)
    return stacked(
        [scale_rows(block, scale, codes[rows]).astype(dtype) for rows, block in row_blocks(x)]
    )


def scale_rows(block: Block, scale: SamplesByGenes, codes: SampleCodes) -> Block:
    """Multiply each row of a block by its sample's row of `scale`; sparse stays sparse."""
    if isinstance(block, np.ndarray):
        return block * scale[codes]
    sample = np.repeat(codes, np.diff(block.indptr))
    data = block.data * scale[sample, block.indices]
    return sparse.csr_matrix((data, block.indices, block.indptr), shape=block.shape)


def result_dtype(x: Any) -> np.dtype:
    """Return the type of corrected values: float64 where the input is, else float32."""
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
