"""Grow a real data set to any size, in chunks: for measurements of time and memory.

    python benchmarks/integration/grow.py FILE.h5ad GROWN.h5ad --cells 100000

Cells are drawn with replacement, and a tenth of the molecules of each are dropped at random, so
that no two are the same.  Batch, type and all else that obs says of a cell stay with it.  What is
written are raw counts, as .h5ad (compressed by gzip) or .zarr, by the name of the file; memory does
not grow with the cells.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

KEPT = 0.9  # share of the molecules
CHUNK = 2000  # cells


def thinned(counts: csr_matrix, drawn: np.ndarray, seed: int) -> Iterator[csr_matrix]:
    """Yield the counts of the drawn cells, some at a time, each molecule kept by chance."""
    for start in range(0, len(drawn), CHUNK):
        rng = np.random.default_rng([seed, start])
        x = counts[drawn[start : start + CHUNK]]
        x.data = rng.binomial(np.rint(x.data).astype(int), KEPT).astype(np.float32)
        x.eliminate_zeros()
        yield x


def grow(source: Path, target: Path, n_cells: int, *, seed: int = 0) -> None:
    """Write so many cells, drawn from those of `source`."""
    import anndata
    import h5py
    import zarr

    adata = anndata.read_h5ad(source)
    drawn = np.random.default_rng(seed).integers(adata.n_obs, size=n_cells)
    obs = adata.obs.iloc[drawn]
    obs.index = [str(i) for i in range(n_cells)]
    empty = anndata.AnnData(obs=obs, var=adata.var)
    is_zarr = target.suffix == ".zarr"
    (empty.write_zarr if is_zarr else empty.write_h5ad)(target)
    if is_zarr:
        file = zarr.open_group(target, mode="a", use_consolidated=False)
    else:
        file = h5py.File(target, "a")
    counts = csr_matrix(adata.X, dtype=np.float32)
    blocks = thinned(counts, drawn, seed)
    first = next(blocks)
    first.indptr = first.indptr.astype(np.int64)  # there will be many values
    options = {} if is_zarr else {"compression": "gzip"}
    anndata.io.write_elem(file, "X", first, dataset_kwargs=options)
    for block in blocks:
        anndata.io.sparse_dataset(file["X"]).append(block)
    if is_zarr:
        zarr.consolidate_metadata(target)  # of before there was X
    else:
        file.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="FILE", type=Path, help="counts of real cells, .h5ad")
    parser.add_argument("target", metavar="GROWN", type=Path, help="file to write: .h5ad or .zarr")
    parser.add_argument("--cells", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    grow(options.source, options.target, options.cells, seed=options.seed)


if __name__ == "__main__":
    main()
