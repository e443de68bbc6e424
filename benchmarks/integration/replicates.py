"""Do samples that were measured twice come together, and do different ones stay apart?

    python benchmarks/integration/replicates.py [--data proteome_mice metabolome_mtbls79]

Needs the public sets in the folder BIOREN_DATA: a proteome and a metabolome with missing values,
where the same mice (or, "proteome_mice:strain", mice of one strain), cows and sheep were measured
in several batches; regions of kidneys on several slides; surface proteins of 13 studies (200 cells
each); bulk arrays.  The proteome and the metabolome are brought to a common level run by run, by
the median difference from the features' medians (Dieterle et al. 2006); regions to log counts per
million; surface proteins to log1p.

Methods that are told more than the batch say so: "knows" the truth, or "controls", the quality
controls of the metabolome.  Least squares on the batches, with what is missing dropped feature by
feature, is what limma's removeBatchEffect does; with the truth it is its design=.  ComBat takes
complete features only, so that all methods are told on these as well.

Told are, over pairs of runs with the correlation of features around their means (those that both
have), and over features by least squares:

- across: mean correlation of replicates in different batches,
- apart: mean correlation of runs of different groups in one batch,
- AUC: that of two runs of different batches, replicates correlate more than others do,
- AUC, batch: the same beside runs of different groups in one batch, which share its effect,
- batch, truth: what batch explains of the variance beyond the groups, and the groups beyond batch;
  adjusted for the number of levels, so that chance is 0; medians over features,
- CV: coefficient of variation of the quality controls over all batches, median over features.

Tables, and replicates.csv.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from run import RESULTS, markdown, number
from scipy.stats import rankdata

import bioren

#: Cells of each study of surface proteins.
CELLS = 200


class Case(NamedTuple):
    """Runs of several batches.

    Attributes
    ----------
    x
        Runs x features, on a log scale; NaN where nothing was measured.
    batch, replicate, group
        Of each run: its batch, what is the same in replicates, and what is different in others.
    control
        Which runs are quality controls; they are no replicates of anything.
    """

    x: np.ndarray
    batch: np.ndarray
    replicate: np.ndarray
    group: np.ndarray
    control: np.ndarray

    def of_features(self, features: np.ndarray) -> Case:
        """Return the case with some features."""
        return self._replace(x=self.x[:, features])

    def adata(self) -> anndata.AnnData:
        obs = {"batch": self.batch, "group": self.group, "control": self.control}
        return anndata.AnnData(self.x.copy(), pd.DataFrame(obs, index=self.names()))

    def names(self) -> list[str]:
        return [str(i) for i in range(len(self.batch))]


def common_level(x: np.ndarray) -> np.ndarray:
    """Return runs without the median of their differences from the features' medians."""
    difference = x - np.nanmedian(x, axis=0)
    return x - np.nanmedian(difference, axis=1, keepdims=True)


def log_cpm(counts: np.ndarray) -> np.ndarray:
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e6)


#: How each set is read: how values are prepared, and columns of replicates and of groups.
SETS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, str]] = {
    "proteome_mice": (common_level, "mouse", "strain"),
    "proteome_mice:strain": (common_level, "strain", "strain"),
    "metabolome_mtbls79": (common_level, "individual", "individual"),
    "spatial_dkd": (log_cpm, "region", "region"),
    "adt_13studies": (np.log1p, "cell_type", "cell_type"),
    "bulk_bladderbatch": (np.asarray, "cell_type", "cell_type"),
}


def read(name: str) -> Case:
    """Return a public set."""
    prepare, replicate, group = SETS[name]
    adata = anndata.read_h5ad(Path(os.environ["BIOREN_DATA"]) / f"{name.split(':')[0]}.h5ad")
    if name == "adt_13studies":
        adata = adata[adata.obs["cell_type"] != "undefined"]
        rng = np.random.default_rng(0)
        of_batch = adata.obs.groupby("batch", observed=True).indices.values()
        adata = adata[np.sort(np.concatenate([rng.permutation(i)[:CELLS] for i in of_batch]))]
    x = adata.X if isinstance(adata.X, np.ndarray) else adata.X.toarray()
    x = prepare(np.asarray(x, dtype=float))
    varies = np.nanmin(x, axis=0) < np.nanmax(x, axis=0)
    column = {key: adata.obs[key].astype(str).to_numpy() for key in ("batch", replicate, group)}
    control = adata.obs.get("is_qc", pd.Series(False, adata.obs_names)).to_numpy()
    return Case(x[:, varies], column["batch"], column[replicate], column[group], control)


# Methods


def levels(*factors: np.ndarray) -> np.ndarray:
    """Return columns of a design, runs x levels, the first level of each factor left out."""
    return np.column_stack(
        [np.ones(len(factors[0]))]
        + [pd.get_dummies(f, dtype=float, drop_first=True).to_numpy() for f in factors]
    )


def without_batch(case: Case, *, design: bool = False, controls: bool = False) -> np.ndarray:
    """Return values without the batches' coefficients of least squares, which are 0 on average."""
    names, codes = np.unique(case.batch, return_inverse=True)
    # Coefficients of the batches sum to 0: each batch weighs the same.
    contrast = np.eye(len(names))[:, 1:] - np.eye(len(names))[:, :1]
    batch = contrast[codes]
    other = levels(case.group) if design else np.ones((len(codes), 1))
    out = case.x.copy()
    for g in range(case.x.shape[1]):
        some = ~np.isnan(case.x[:, g]) & (case.control if controls else True)
        if not some.any():
            continue
        columns = np.column_stack([batch, other])[some]
        found = np.linalg.lstsq(columns, case.x[some, g], rcond=None)[0][: batch.shape[1]]
        measured = np.isin(codes, codes[some])  # a batch without a value keeps its level
        out[measured, g] -= batch[measured] @ found
    return out


def bridge(case: Case, **options) -> np.ndarray:
    adata = case.adata()
    bioren.pp.bridge(adata, "batch", **options)
    return adata.layers["bioren"]


def combat(case: Case) -> np.ndarray:
    return np.asarray(sc.pp.combat(case.adata(), "batch", inplace=False))


#: In the order of the tables; ComBat takes complete features only, some need controls.
METHODS: dict[str, Callable[[Case], np.ndarray]] = {
    "uncorrected": lambda case: case.x,
    "least squares on batch": without_batch,
    "ComBat": combat,
    "bioren, standardize=False": lambda case: bridge(case, standardize=False),
    "bioren": bridge,
    "least squares, controls": lambda case: without_batch(case, controls=True),
    "bioren, controls, standardize=False": lambda case: bridge(
        case, controls_key="control", standardize=False
    ),
    "bioren, controls": lambda case: bridge(case, controls_key="control"),
    "least squares, knows groups": lambda case: without_batch(case, design=True),
    "bioren, knows groups": lambda case: bridge(case, labels_key="group"),
}


# Measures


def correlations(x: np.ndarray) -> np.ndarray:
    """Return correlations of runs over the features that both have, around the features' means."""
    z = x - np.nanmean(x, axis=0)
    there = (~np.isnan(z)).astype(float)
    z = np.nan_to_num(z)
    n = there @ there.T
    first, second, product = z @ there.T, z**2 @ there.T, z @ z.T
    covariance = product - first * first.T / n
    variance = second - first**2 / n
    return covariance / np.sqrt(variance * variance.T)


def auc(above: np.ndarray, below: np.ndarray) -> float:
    """Return how often a value of the first exceeds one of the second."""
    rank = rankdata(np.concatenate([above, below]))[: len(above)]
    return (rank.sum() - len(above) * (len(above) + 1) / 2) / (len(above) * len(below))


def of_pairs(case: Case, x: np.ndarray) -> dict[str, float]:
    """Return what is told by pairs of runs."""
    runs = np.flatnonzero(~case.control)
    correlation = correlations(x)[np.ix_(runs, runs)]
    first, second = np.triu_indices(len(runs), 1)
    value = correlation[first, second]
    batch, replicate, group = (
        of[runs][first] == of[runs][second] for of in (case.batch, case.replicate, case.group)
    )
    same, other, apart = ~batch & replicate, ~batch & ~group, batch & ~group
    return {
        "across": value[same].mean(),
        "apart": value[apart].mean(),
        "AUC": auc(value[same], value[other]),
        "AUC, batch": auc(value[same], value[apart]),
    }


def unexplained(y: np.ndarray, design: np.ndarray) -> float:
    """Return the variance that a design leaves, by its residual degrees of freedom."""
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return np.square(residual).sum() / max(len(y) - np.linalg.matrix_rank(design), 1)


def of_features(case: Case, x: np.ndarray) -> dict[str, float]:
    """Return what is told by features."""
    batch, truth = [], []
    for g in range(x.shape[1]):
        some = ~np.isnan(x[:, g]) & ~case.control
        y = x[some, g]
        factors = case.batch[some], case.group[some]
        both, of_batch, of_group = (levels(*f) for f in (factors, factors[:1], factors[1:]))
        if len(y) - np.linalg.matrix_rank(both) < 5 or np.ptp(y) == 0:
            continue
        whole, left = y.var(ddof=1), unexplained(y, both)
        batch.append((unexplained(y, of_group) - left) / whole)
        truth.append((unexplained(y, of_batch) - left) / whole)
    found = {"batch": float(np.median(batch)), "truth": float(np.median(truth)), "CV": np.nan}
    if case.control.any():
        controls = 2 ** x[case.control]
        found["CV"] = float(
            np.nanmedian(np.nanstd(controls, axis=0) / np.nanmean(controls, axis=0))
        )
    return found


def rows_of(name: str) -> Iterator[dict[str, object]]:
    """Yield the results of one set, on all features and on the complete ones."""
    case = read(name)
    complete = ~np.isnan(case.x).any(axis=0)
    some = {"all": np.ones(len(complete), dtype=bool), "complete": complete}
    if complete.all():
        del some["all"]
    made = {}
    for method, correct in METHODS.items():
        if "controls" in method and not case.control.any():
            continue
        if method != "ComBat":
            made[method] = correct(case)
    for features, columns in some.items():
        here = case.of_features(columns)
        for method in METHODS:
            if method == "ComBat" and features == "complete":
                made[method] = np.full(case.x.shape, np.nan)
                made[method][:, complete] = combat(here)
            if method not in made:
                continue
            x = made[method][:, columns]
            yield {
                "data": name,
                "features": f"{columns.sum()} {features}",
                "method": method,
                **of_pairs(here, x),
                **of_features(here, x),
            }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args()
    if "BIOREN_DATA" not in os.environ:
        parser.error("BIOREN_DATA names no folder of public data sets")
    warnings.simplefilter("ignore")
    rows = []
    for name in options.data:
        rows += list(rows_of(name))
        table = pd.DataFrame([row for row in rows if row["data"] == name])
        columns = [c for c in table if c not in ("data", "features", "method")]
        columns = [c for c in columns if table[c].notna().any()]
        for features, group in table.groupby("features", sort=False):
            lines = [[r["method"], *(number(r[c]) for c in columns)] for _, r in group.iterrows()]
            print(f"## {name}, {features} features\n\n{markdown(['', *columns], lines)}\n")
    options.output.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(options.output / "replicates.csv", index=False)


if __name__ == "__main__":
    main()
