"""What faulty cell types do to `tl.integrate(labels_key=...)`.

    python benchmarks/integration/label_faults.py [FILE.h5ad ...] [--seeds 3]

Without files the four core sets in the folder BIOREN_DATA are taken.  The faults are those that
semi-supervised methods were tried with before: labels that are missing, wrong, merged, or named
otherwise in each batch.  Scores are told against the true types: steady total, batch correction
(scores.py), the total without silhouettes and the mixing within types (further.py).  The seed draws
the faulty cells, too.  Written is label_faults.csv, a row per run; a table is printed.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from further import TOTAL, further_scores
from run import RESULTS, markdown, number
from scores import scores

from data import CORE, prepared, public_files

SHOWN = ["steady", "batch", TOTAL, "CiLISI", "kSIM accepted"]


def true(adata, rng):
    return adata.obs["cell_type"].astype(object)


def missing(share: float):
    def fault(adata, rng):
        labels = true(adata, rng)
        labels[rng.random(len(labels)) < share] = np.nan
        return labels

    return fault


def wrong(share: float):
    """A share of the cells has the name of another type, each other one as likely."""

    def fault(adata, rng):
        labels = true(adata, rng)
        names = adata.obs["cell_type"].cat.categories
        for cell in np.flatnonzero(rng.random(len(labels)) < share):
            labels.iloc[cell] = rng.choice(names[names != labels.iloc[cell]])
        return labels

    return fault


def merged(adata, rng):
    """The two types whose means of components are closest have one name."""
    labels = true(adata, rng)
    names = list(adata.obs["cell_type"].cat.categories)
    means = np.array([adata.obsm["X_pca"][(labels == name).to_numpy()].mean(0) for name in names])
    apart = np.linalg.norm(means[:, None] - means, axis=2) + np.diag(np.full(len(names), np.inf))
    pair = [names[i] for i in np.unravel_index(apart.argmin(), apart.shape)]
    return labels.where(~labels.isin(pair), " or ".join(pair))


def named_by_batch(adata, rng):
    """The largest type has a name of its own in each batch."""
    labels = true(adata, rng)
    largest = labels.value_counts().index[0]
    own = largest + " in " + adata.obs["batch"].astype(str)
    return labels.where(labels != largest, own)


FAULTS = {
    "no labels": None,
    "true labels": true,
    "10 % missing": missing(0.1),
    "30 % missing": missing(0.3),
    "10 % wrong": wrong(0.1),
    "two closest types merged": merged,
    "largest type named by batch": named_by_batch,
}


def with_fault(adata, name: str, seed: int) -> dict[str, float]:
    """Return the scores of the embedding that is made with faulty labels."""
    import bioren

    adata = adata.copy()
    key = None
    if FAULTS[name] is not None:
        key = "given"
        adata.obs[key] = FAULTS[name](adata, np.random.default_rng(seed)).astype("category")
    bioren.tl.integrate(adata, "batch", labels_key=key, rng=seed, progress=False)
    found = scores(adata, adata.obsm["X_bioren"])
    return found | further_scores(adata, adata.obsm["X_bioren"], found)


def table_of(runs: pd.DataFrame) -> str:
    """Return the means over the seeds, a row per fault and a column per set and score."""
    wide = runs.groupby(["data", "fault"], sort=False)[SHOWN].mean()
    parts = []
    for data in runs["data"].unique():
        lines = [[name, *(number(v) for v in row)] for name, row in wide.loc[data].iterrows()]
        parts.append(f"## {data}\n\n{markdown(['', *SHOWN], lines)}")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="data sets; none: the core sets")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args()
    files = options.files or [path for path in public_files() if path.stem in CORE]
    if not files:
        parser.error("name .h5ad files, or set BIOREN_DATA to the folder of the public sets")
    warnings.simplefilter("ignore")
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for path in files:
        adata = prepared(path)
        for name in FAULTS:
            for seed in range(options.seeds):
                row = {"data": path.stem, "fault": name, "seed": seed}
                rows.append(row | with_fault(adata, name, seed))
            print(f"{path.stem}: {name}: {rows[-1]['steady']:.3f}", flush=True)
            pd.DataFrame(rows).to_csv(options.output / "label_faults.csv", index=False)
    print("\n" + table_of(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
