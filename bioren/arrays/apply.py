"""Each cell through the bridge of its own sample."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from bioren.arrays.blocks import Block
from bioren.arrays.lazy import by_rows, empty_like
from bioren.arrays.shapes import AnyCellsByGenes, SampleCodes, SamplesByGenes
from bioren.bridge import AffineBridge

__all__ = ["apply_by_sample", "result_dtype", "scale_by_sample", "scale_rows"]


def apply_by_sample(x: Any, codes: SampleCodes, bridges: AffineBridge) -> AnyCellsByGenes:
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
    numpy.ndarray or dask.array.Array
        A dask array where `x` is one.  float64 where `x` is, else float32; computed in float64.
    """
    dtype = result_dtype(x)
    of_zero = bridges.shift.astype(dtype)

    def bridged(block: Block, samples: SampleCodes) -> np.ndarray:
        scaled = scale_rows(block, bridges.scale, samples)
        if isinstance(scaled, np.ndarray):
            return scaled + bridges.shift[samples]
        out = of_zero[samples]
        entries = scaled.tocoo()
        moved = entries.data + bridges.shift[samples[entries.row], entries.col]
        out[entries.row, entries.col] = moved
        return out

    return by_rows(bridged, x, codes, n_columns=x.shape[1], like=np.empty((0, 0), dtype))


def scale_by_sample(x: Any, codes: SampleCodes, scale: SamplesByGenes) -> Any:
    """Return ``scale[codes] * x``, in CSR form where `x` is sparse; else as `apply_by_sample`."""
    dtype = result_dtype(x)

    def scaled(block: Block, samples: SampleCodes) -> Block:
        return scale_rows(block, scale, samples).astype(dtype)

    return by_rows(scaled, x, codes, n_columns=x.shape[1], like=empty_like(x, dtype))


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
