"""Bulk arrays: how much of the variance are batch and cancer status, before and after correction?

    python benchmarks/mapping/bulk.py

Needs bulk_bladderbatch.h5ad in the folder BIOREN_DATA: 57 arrays of five batches, of which two
hold one status each, so that batch and status are partly confounded.  No method is told the
status but those whose name says so.  Per gene, by least squares on the two factors:

- R² of a factor alone,
- its partial R² given the other one: what it explains of what the other leaves,
- its own share of the whole variance: what the two explain together, less the other alone.

The last column looks at cancer arrays alone: status cannot be confounded there.  Means over genes,
in tables and bulk.csv; those of the first principal components and of all of them, each weighing as
its variance, follow.  "chance" is what a factor explains on average that has no effect: a lower
share of batch is no virtue.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from cases import RESULTS
from run import markdown, number

import bioren

BATCH, STATUS = "batch", "cell_type"


def combat(adata, **options) -> np.ndarray:
    return np.asarray(sc.pp.combat(adata, BATCH, inplace=False, **options))


def combat_with_status(adata) -> np.ndarray:
    """Return ComBat with the status as covariates, one column less than there are levels.

    Given the column itself, scanpy 1.11 makes a column of every level beside one of every batch
    and inverts the singular matrix.
    """
    levels = pd.get_dummies(adata.obs[STATUS].astype(str), dtype=float, drop_first=True)
    adata.obs[levels.columns] = levels
    return combat(adata, covariates=list(levels.columns))


def bridge(adata, **options) -> np.ndarray:
    return bioren.pp.bridge(adata, BATCH, copy=True, **options).layers["bioren"]


def noise(adata) -> np.ndarray:
    """Return what neither batch nor status has part in."""
    return np.random.default_rng(0).normal(size=adata.shape)


METHODS = {
    "chance": noise,
    "uncorrected": lambda adata: adata.X,
    "ComBat": combat,
    "bioren, standardize=False": lambda adata: bridge(adata, standardize=False),
    "bioren": bridge,
    "ComBat, knows status": combat_with_status,
    "bioren, knows status": lambda adata: bridge(adata, labels_key=STATUS),
}


def residual(x: np.ndarray, *factors: pd.Series) -> np.ndarray:
    """Return per gene the sum of squares that the factors do not explain."""
    design = [np.ones((len(x), 1)), *(pd.get_dummies(f, dtype=float) for f in factors)]
    design = np.column_stack(design)
    fitted = design @ np.linalg.lstsq(design, x, rcond=None)[0]
    return np.square(x - fitted).sum(axis=0)


def explained(x: np.ndarray, batch: pd.Series, status: pd.Series) -> pd.DataFrame:
    """Return the shares that batch and status explain, a row per gene."""
    x = np.asarray(x, dtype=float)
    total = residual(x)
    by = {"batch": residual(x, batch), "status": residual(x, status)}
    both = residual(x, batch, status)
    found = {}
    for name, other in (("batch", "status"), ("status", "batch")):
        found[f"{name} R²"] = 1 - by[name] / total
        found[f"{name} partial R²"] = 1 - both / by[other]
        found[f"{name} own share"] = (by[other] - both) / total
    cancer = (status == "Cancer").to_numpy()
    within = residual(x[cancer], batch[cancer]) / residual(x[cancer])
    found["batch R², cancer arrays"] = 1 - within
    return pd.DataFrame(found)


def components(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the principal components of the arrays, and the share of variance of each."""
    centered = np.asarray(x, dtype=float) - np.mean(x, axis=0)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    kept = s > 1e-6 * s[0]
    return (u * s)[:, kept], (np.square(s) / np.square(s).sum())[kept]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, help="none: bulk_bladderbatch")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args()
    path = options.file or Path(os.environ.get("BIOREN_DATA", ".")) / "bulk_bladderbatch.h5ad"
    if not path.exists():
        parser.error(f"there is no {path}: name a file, or set BIOREN_DATA")
    warnings.simplefilter("ignore")

    adata = anndata.read_h5ad(path)
    batch, status = (adata.obs[key].astype(str) for key in (BATCH, STATUS))
    rows = []
    for name, method in METHODS.items():
        x = method(adata.copy())
        z, weight = components(x)
        of_components = explained(z, batch, status)
        means = {
            "genes": explained(x, batch, status).mean(),
            **{f"component {i + 1}": of_components.iloc[i] for i in range(2)},
            "all components": of_components.mul(weight, axis=0).sum(),
        }
        rows += [{"method": name, "of": of, **mean} for of, mean in means.items()]
    table = pd.DataFrame(rows)
    options.output.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.output / "bulk.csv", index=False)
    columns = [name for name in table if name not in ("method", "of")]
    parts = []
    for of, group in table.groupby("of", sort=False):
        lines = [[row["method"], *(number(row[c]) for c in columns)] for _, row in group.iterrows()]
        parts += [f"## {of}", markdown(["", *columns], lines)]
    text = "\n\n".join(["# Bulk arrays", *parts]) + "\n"
    (options.output / "bulk.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
