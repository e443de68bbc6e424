"""Whether intervals from the standard errors of r and d hold what was planted.

    python benchmarks/integration/intervals.py [--seeds 3]

Cells of one batch are divided at random, and the expression x of the first half is made
scale * x + shift, with scales and shifts that are drawn per gene: their r and d are then known.
The second half is the reference.  Shown is the share of genes whose 90 % interval,
estimate +- 1.645 standard errors, holds the planted value, by the share of cells in which a gene
is detected.  Written is intervals.csv, a row per set, size, seed, quantity and detection.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path("benchmarks/results/integration")

#: File and the batch of it that is divided.
SETS = {"pbmc_kang_10x3k": "kang_ctrl", "kang_9k_genes": "ctrl", "cellbench_5batch": None}
SIZES = [30, 100, 1000, 5000]
NORMAL_90 = 1.6449

#: Upper ends of the shares of cells in which a gene is detected.
DETECTION = {"below 1 %": 0.01, "1 to 5 %": 0.05, "5 to 25 %": 0.25, "above 25 %": 1.01}


def divided(path: Path, batch: str | None, size: int, seed: int):
    """Return cells of one batch in two halves, and the planted r and d by gene."""
    import anndata
    import scanpy as sc

    adata = anndata.read_h5ad(path)
    batch = batch or adata.obs["batch"].value_counts().index[0]
    adata = adata[adata.obs["batch"] == batch].copy()
    rng = np.random.default_rng(seed)
    cells = rng.permutation(adata.n_obs)[: 2 * size]
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    x = adata.X.toarray().astype(np.float64)
    mean, sd = x.mean(axis=0), x.std(axis=0)
    varies = sd > 0
    x, mean, sd = x[:, varies], mean[varies], sd[varies]
    scale = np.exp(rng.normal(0, 0.2, len(sd)))
    shift = rng.normal(0, 0.3, len(sd)) * sd
    x = x[cells]
    first = np.arange(len(cells)) < len(cells) // 2
    part = anndata.AnnData(np.where(first[:, None], scale * x + shift, x))
    part.obs["batch"] = np.where(first, "planted", "reference")
    detected = (x > 0).mean(axis=0)
    return part, detected, scale, ((scale - 1) * mean + shift) / sd


def measured(part, *, standardize: bool, seed: int) -> pd.DataFrame:
    """Return the effects of the planted half, a row per gene."""
    import bioren

    bioren.pp.bridge(part, "batch", reference="reference", standardize=standardize, rng=seed)
    table = bioren.tl.batch_effects(part)
    return table[table["sample"] == "planted"].reset_index(drop=True)


def rows(name: str, batch: str | None, size: int, seed: int):
    """Yield the coverage in each range of detection."""
    path = Path(os.environ["BIOREN_DATA"], f"{name}.h5ad")
    for standardize in (True, False):
        part, detected, r, d = divided(path, batch, size, seed)
        found = measured(part, standardize=standardize, seed=seed)
        for quantity, planted in (("r", r), ("d", d)):
            error = found[f"standard_error_{quantity}"].to_numpy()
            missed = np.abs(found[quantity].to_numpy() - planted) / error
            lower = 0.0
            for label, upper in DETECTION.items():
                here = (detected > lower) & (detected <= upper)
                lower = upper
                if here.sum() < 20:
                    continue
                yield {
                    "data": name, "cells": part.n_obs // 2, "standardize": standardize,
                    "seed": seed, "quantity": quantity, "detected": label,
                    "genes": int(here.sum()), "coverage": float((missed[here] <= NORMAL_90).mean()),
                    "median_error": float(np.median(error[here])),
                }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args()
    if "BIOREN_DATA" not in os.environ:
        parser.error("set BIOREN_DATA to the folder of the public sets")
    warnings.simplefilter("ignore")
    found = [
        row
        for name, batch in SETS.items()
        for size in SIZES
        for seed in range(options.seeds)
        for row in rows(name, batch, size, seed)
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(found)
    table.to_csv(options.output / "intervals.csv", index=False)
    shown = table.pivot_table(
        index=["data", "standardize", "quantity", "cells"], columns="detected", values="coverage",
        sort=False,
    )  # fmt: skip
    print(shown.round(2).to_string())


if __name__ == "__main__":
    main()
