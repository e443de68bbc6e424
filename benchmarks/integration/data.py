"""The data sets, and how they are prepared: alike for every method.

Counts, CP10k, log1p, 2,000 variable genes by batch (all genes where there are no more) and 50
principal components.  The counts of the same genes stay in layers["counts"] for the methods that
model counts.  A file that holds an embedding alone is taken as it is.

    python benchmarks/integration/data.py FILE.h5ad PART.h5ad --types "CD4 T cells; CD8 T cells"

writes the cells of some types, so that they can be compared by themselves.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from anndata import AnnData

CORE = ("pbmc_kang_10x3k", "cellbench_5batch", "pancreas_5tech_panc8", "kang_pbmc_ctrl_stim")
OTHERS = ("kang_pbmc_ctrl_8donors", "jurkat_293t_pcs")


def public_files() -> list[Path]:
    """Return the public data sets of the folder that BIOREN_DATA names; none without it."""
    folder = os.environ.get("BIOREN_DATA")
    return [Path(folder) / f"{name}.h5ad" for name in CORE + OTHERS] if folder else []


def named_or_main(file: Path | None, parser: argparse.ArgumentParser) -> Path:
    """Return the file that an option names, or the largest public set; end with usage without."""
    path = file or Path(os.environ.get("BIOREN_DATA", ".")) / "pbmc_kang_10x3k.h5ad"
    if not path.exists():
        parser.error(f"there is no {path}: name a file, or set BIOREN_DATA")
    return path


def read(path: Path) -> AnnData:
    """Return what the file holds, with batches and cell types as categories that all occur."""
    import anndata

    adata = anndata.read_h5ad(path)
    for key in ("batch", "cell_type"):
        adata.obs[key] = adata.obs[key].astype(str).astype("category")
    return adata


def is_embedding(adata: AnnData) -> bool:
    """Return whether there are components and no counts: no gene is ever negative."""
    return "X_pca" in adata.obsm and bool(adata.X.min() < 0)


def prepared(path: Path) -> AnnData:
    """Return log-expression of the variable genes, with counts and principal components."""
    adata = read(path)
    return adata if is_embedding(adata) else normalized(adata)


def normalized(adata: AnnData) -> AnnData:
    """Return counts as log-expression of the variable genes, see `prepared`."""
    import scanpy as sc

    adata.X = csr_matrix(adata.X, dtype=np.float32)
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    if adata.n_vars > 2000:
        sc.pp.highly_variable_genes(adata, n_top_genes=2000, batch_key="batch")
        adata = adata[:, adata.var["highly_variable"]].copy()
        del adata.var["highly_variable"]
    sc.pp.pca(adata, n_comps=min(50, min(adata.shape) - 1))
    return adata


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="data set")
    parser.add_argument("part", type=Path, help="file to be written")
    parser.add_argument("--types", required=True, help="cell types, between semicolons")
    options = parser.parse_args()
    adata = read(options.file)
    wanted = [name.strip() for name in options.types.split(";")]
    unknown = sorted(set(wanted) - set(adata.obs["cell_type"]))
    if unknown:
        parser.error(f"no cells of {unknown}; there are {sorted(set(adata.obs['cell_type']))}")
    adata = adata[adata.obs["cell_type"].isin(wanted)].copy()
    adata.write_h5ad(options.part)
    print(f"{adata.n_obs:,} cells of {len(wanted)} types in {options.part}")


if __name__ == "__main__":
    main()
