"""Cost against the number of cells, and the speed of embedding with a fitted model.

    python benchmarks/integration/scaling.py [--cells 5000 10000 50000 200000] [--embedded 100000]

Cells are drawn from a real data set with replacement, and a tenth of the molecules of each are
dropped at random, so that no two are the same.  Each task runs once, in a process of its own; the
drawing, log-expression and components are made before the clock starts (measure.py).  Harmony is
therefore the time from components on, which have a line of their own; all other tasks find their
components themselves, or need none.  ComBat is left out where its copies of the dense matrix would
take more than 12 GB.  Written is scaling.csv; figures.py draws it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from measure import Cost, in_own_process
from run import RESULTS, markdown

from data import named_or_main, normalized, read

KEPT = 0.9  # share of the molecules
FITTED = 10_000  # cells that the model for embedding is fitted on
MOST_GB = 12
COMBAT_COPIES = 8  # dense matrices of 8-byte numbers that it needs at its peak, as measured


def resampled(path: Path, n_cells: int, seed: int = 0):
    """Return so many cells of the set, drawn with replacement and thinned, as log-expression."""
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(seed)
    adata = read(path)
    adata = adata[rng.integers(adata.n_obs, size=n_cells)].copy()
    adata.obs_names = [str(i) for i in range(n_cells)]
    adata.X = csr_matrix(adata.X, dtype=np.float32)
    adata.X.data = rng.binomial(np.rint(adata.X.data).astype(int), KEPT).astype(np.float32)
    adata.X.eliminate_zeros()
    adata = normalized(adata)
    del adata.layers["counts"]
    return adata


def components(adata):
    import scanpy as sc

    return lambda: sc.pp.pca(adata, n_comps=50)


def harmony(adata):
    import harmonypy  # noqa: F401  before the clock starts
    import methods

    return lambda: methods.harmony(adata, 0)


def combat(adata):
    import scanpy as sc

    adata.X = adata.X.toarray()
    return lambda: sc.pp.combat(adata, "batch")


def integrate(adata):
    import bioren.tools

    return lambda: bioren.tools.integrate(adata, "batch", progress=False)


def bridge(adata):
    import bioren.preprocessing

    return lambda: bioren.preprocessing.bridge(adata, "batch")


TASKS = {
    "bioren.tl.integrate": integrate,
    "bioren.pp.bridge": bridge,
    "harmony, from components": harmony,
    "components (scanpy)": components,
    "combat": combat,
}
EMBEDDING = "bioren, embedding by a fitted model"


def task(name: str, path: Path, n_cells: int):
    """Return task `name` on so many cells as a function, all made ready."""
    return TASKS[name](resampled(path, n_cells))


def embedding(path: Path, n_cells: int, n_fitted: int):
    """Return the embedding of new cells by a fitted model as a function."""
    import bioren

    model = bioren.RenormAutoencoder()
    model.fit(resampled(path, n_fitted, seed=1), "batch")
    adata = resampled(path, n_cells)
    return lambda: model.embed(adata)


def fits(name: str, path: Path, n_cells: int) -> bool:
    """Return whether a task's dense matrices stay below the limit."""
    return name != "combat" or n_cells * read(path).n_vars * 8 * COMBAT_COPIES <= MOST_GB * 1e9


def row(name: str, n_cells: int, cost: Cost) -> dict:
    print(f"{name}, {n_cells:,} cells: {cost.seconds:.1f} s, {cost.peak_gb:.2f} GB", flush=True)
    return {"task": name, "cells": n_cells, **cost._asdict()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, help="data set; none: pbmc_kang_10x3k")
    parser.add_argument("--cells", type=int, nargs="+", default=[5000, 10_000, 50_000, 200_000])
    parser.add_argument("--embedded", type=int, default=100_000, help="cells for a fitted model")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args()
    path = named_or_main(options.file, parser)

    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    n_fitted = min(FITTED, options.embedded)
    _, cost = in_own_process(embedding, path, options.embedded, n_fitted)
    rows.append(row(EMBEDDING, options.embedded, cost))
    for n_cells in options.cells:
        for name in TASKS:
            if fits(name, path, n_cells):
                _, cost = in_own_process(task, name, path, n_cells)
                rows.append(row(name, n_cells, cost))
                pd.DataFrame(rows).to_csv(options.output / "scaling.csv", index=False)

    table = pd.DataFrame(rows)
    text = (
        table["seconds"].map("{:.1f} s, ".format) + table["peak_gb"].map("{:.2f} GB".format)
    ).to_numpy()
    wide = table.assign(text=text).pivot_table(
        index="task", columns="cells", values="text", aggfunc="first", sort=False
    )
    wide = wide[sorted(wide.columns)].fillna("")
    print("\n" + markdown(["", *(f"{n:,}" for n in wide.columns)], wide.reset_index().to_numpy()))


if __name__ == "__main__":
    main()
