"""Does integration leave alone what it should?  Null data, conditions, composition, markers.

    python benchmarks/integration/safety.py

Needs the public sets in the folder BIOREN_DATA.  Each table is told by the function that makes
it; all are written to benchmarks/results/integration/safety.csv as rows of (question, case, value).
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from methods import METHODS, harmony
from run import RESULTS
from scipy.stats import spearmanr, ttest_ind
from sklearn.neighbors import NearestNeighbors

import bioren
from data import CORE, prepared

#: Interferon-stimulated genes known long before the data (Schoggins 2011, Nature 472:481).
INTERFERON = ("ISG15", "IFI6", "IFIT1", "IFIT2", "IFIT3", "MX1", "ISG20", "OAS1", "IFI44L", "LY6E")


def public(name: str) -> anndata.AnnData:
    return prepared(Path(os.environ["BIOREN_DATA"]) / f"{name}.h5ad")


def neighbors(z: np.ndarray, k: int = 15) -> np.ndarray:
    return NearestNeighbors(n_neighbors=k + 1).fit(z).kneighbors(z)[1][:, 1:]


def overlap(before: np.ndarray, after: np.ndarray) -> float:
    pairs = zip(neighbors(before), neighbors(after), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in pairs]))


def purity(z: np.ndarray, labels: np.ndarray, cells: np.ndarray | slice = slice(None)) -> float:
    """Return the share of the 15 nearest neighbors that have the cell's own label."""
    return float((labels[neighbors(z)[cells]] == labels[cells, None]).mean())


def integrate(adata, key: str, **options):
    """Return an integrated copy."""
    return bioren.tl.integrate(adata, key, progress=False, copy=True, **options)


def null_halves():
    """Random halves of one donor, 5 splits: neighbors kept, and genes that differ afterwards."""
    adata = public("kang_pbmc_ctrl_8donors")
    adata = adata[adata.obs["batch"] == "1015"].copy()
    sc.pp.pca(adata, n_comps=50)
    for split in range(5):
        half = np.random.default_rng(split).permutation(adata.n_obs) % 2
        adata.obs["half"] = pd.Categorical(half.astype(str))
        even, untouched = (integrate(adata, "half", strength=s) for s in (1, 0))
        on_pca = integrate(adata, "half", use_rep="X_pca").obsm["X_bioren"]
        theirs = harmony(renamed(adata, "half"), split)
        kept = {
            "bioren, from genes": overlap(untouched.obsm["X_bioren"], even.obsm["X_bioren"]),
            "bioren, from X_pca": overlap(adata.obsm["X_pca"], on_pca),
            "harmony": overlap(adata.obsm["X_pca"], theirs),
        }
        for method, share in kept.items():
            yield "null: share of 15 neighbors kept", method, share
        for name, x in (("before", adata.X.toarray()), ("after", even.layers["bioren"])):
            p = np.nan_to_num(ttest_ind(x[half == 0], x[half == 1], equal_var=False).pvalue, nan=1)
            yield "null: share of genes with p < .05", name, (p < 0.05).mean()
            yield "null: genes with p < .05 / genes", name, (p < 0.05 / len(p)).sum()


def renamed(adata, key: str):
    """Return a copy whose batch is another column."""
    adata = adata.copy()
    adata.obs["batch"] = adata.obs[key]
    return adata


def cell_lines():
    """Jurkat and 293T: two batches hold one line each, the third both; input is 20 components."""
    adata = public("jurkat_293t_pcs")
    kind, batch = (adata.obs[key].to_numpy(dtype=str) for key in ("cell_type", "batch"))
    placed = {"pca": adata.obsm["X_pca"], "harmony": harmony(adata.copy(), 0)}
    for seed in range(3):
        integrated = integrate(adata, "batch", use_rep="X_pca", rng=seed)
        placed[f"bioren {seed}"] = integrated.obsm["X_bioren"]
    for name, z in placed.items():
        method = name.split()[0]
        yield "cell lines: neighbors of the same line", method, purity(z, kind)
        for line in np.unique(kind):
            cells = kind == line
            share = (batch[cells][neighbors(z[cells])] != batch[cells, None]).mean()
            part = np.unique(batch[cells], return_counts=True)[1] / cells.sum()
            even = 1 - np.square(part).sum()  # what chance would give
            yield f"cell lines: {line}, neighbors of other batches / chance", method, share / even


def condition():
    """Interferon: what stays of the response within types, by how much may be removed.

    Genes are ranked by Welch's t among those detected in a tenth of the type's cells, in either
    sample: correction moves a gene that is not expressed by next to nothing, but without noise.
    """
    adata = public("kang_pbmc_ctrl_stim")
    cases = {
        "uncorrected": adata.X.toarray(),
        "default": integrate(adata, "batch").layers["bioren"],
        "strength=.5": integrate(adata, "batch", strength=0.5).layers["bioren"],
        "max_removed=(2, .5)": integrate(adata, "batch", max_removed=(2, 0.5)).layers["bioren"],
    }
    known = np.flatnonzero(adata.var_names.isin(INTERFERON))
    stimulated = (adata.obs["batch"] == "stim").to_numpy()
    for name, x in cases.items():
        for kind in adata.obs["cell_type"].cat.categories:
            cells = (adata.obs["cell_type"] == kind).to_numpy()
            score = ttest_ind(x[cells & stimulated], x[cells & ~stimulated], equal_var=False)
            detected = [
                (cases["uncorrected"][cells & s] > 0).mean(0) for s in (stimulated, ~stimulated)
            ]
            t = np.where(np.max(detected, axis=0) >= 0.1, np.nan_to_num(score.statistic), -np.inf)
            top = np.argsort(-t)[:20]
            yield "interferon: known genes among the top 20", name, np.isin(known, top).sum()


def composition():
    """One donor in two samples, 90/10 and 10/90 of two types: genes moved, in sds, per type."""
    adata = public("kang_pbmc_ctrl_8donors")
    adata = adata[adata.obs["batch"].isin(["1015", "1256"])].copy()
    for donor in ("1015", "1256"):
        for seed in range(3):
            one = adata[adata.obs["batch"] == donor].copy()
            rng = np.random.default_rng(seed)
            kind = one.obs["cell_type"].astype(str).to_numpy()
            common = pd.Series(kind).value_counts().index[:2]
            wanted = np.where(kind == common[0], 0.9, np.where(kind == common[1], 0.1, 0.5))
            one.obs["sample"] = pd.Categorical(
                (rng.random(len(kind)) < wanted).astype(int).astype(str)
            )
            result = integrate(one, "sample")
            x = one.X.toarray()
            moved = (result.layers["bioren"] - x) / (x.std(axis=0) + (x.std(axis=0) == 0))
            groups = one.obs.groupby(["sample", "cell_type"], observed=True).indices.values()
            means = np.abs([moved[cells].mean(axis=0) for cells in groups if len(cells) > 10])
            yield (
                "composition: 95th percentile of genes moved, sd",
                f"donor {donor}",
                np.quantile(means, 0.95),
            )
            yield "composition: most a gene moved, sd", f"donor {donor}", means.max()


def single_sample_types():
    """Types that one study alone holds: the neighbors and the marker genes that they keep.

    Of the 50 genes that differ most between the type and the study's other cells, told is how much
    of the differences is left, as the slope of those after on those before.
    """
    adata = public("pbmc_kang_10x3k")
    adata = adata[np.random.default_rng(0).permutation(adata.n_obs)[:5000]].copy()
    kinds, study = (adata.obs[key].to_numpy(dtype=str) for key in ("cell_type", "batch"))
    for kind in ("CD14+ Mono", "NK", "B"):
        here = (kinds != kind) | (study != "kang_ctrl")
        part, labels = adata[here].copy(), kinds[here]
        sc.pp.pca(part, n_comps=50)
        for method, seeds in {"pca": 1, "harmony": 1, "bioren": 3}.items():
            for seed in range(seeds):
                z = METHODS[method].run(part.copy(), seed)
                share = purity(z, labels, labels == kind)
                yield f"types of a single sample: purity, {kind}", method, share
        after = integrate(part, "batch").layers["bioren"]
        alone = study[here] == np.unique(study[here & (kinds == kind)]).item()
        before, after = (
            x[alone & (labels == kind)].mean(axis=0) - x[alone & (labels != kind)].mean(axis=0)
            for x in (part.X.toarray(), after)
        )
        top = np.argsort(-np.abs(before))[:50]
        slope = float(before[top] @ after[top] / np.square(before[top]).sum())
        yield f"types of a single sample: marker differences left, {kind}", "bioren", slope


def unseen_genes():
    """What neighbors of other samples tell of genes that the embedding has not seen.

    What differs between samples plays no part.  What differs between the cells of a sample does,
    whether biology or depth, which is seen in all genes.
    """
    for name in CORE:
        adata = public(name)
        rng = np.random.default_rng(5)
        apart = rng.permutation(adata.n_vars) < adata.n_vars // 5
        cells = rng.permutation(adata.n_obs)[:6000]
        seen, unseen = adata[cells][:, ~apart].copy(), adata.X[cells][:, apart].toarray()
        sc.pp.pca(seen, n_comps=50)
        batch = seen.obs["batch"].to_numpy(dtype=str)
        for method in ("pca", "harmony", "bioren", "bioren, no denoising"):
            told = told_by_others(METHODS[method].run(seen.copy(), 0), batch, unseen)
            question = f"unseen genes: share told by 15 neighbors of other samples, {name}"
            yield question, method, told


def told_by_others(z: np.ndarray, batch: np.ndarray, x: np.ndarray) -> float:
    """Return the share of variance within samples that neighbors of other samples tell.

    It is r * |r|, the mean over the genes that vary in a sample; samples count by their cells,
    those with fewer than 30 not at all.
    """
    shares, sizes = [], []
    for sample in np.unique(batch):
        here = batch == sample
        if here.sum() < 30:
            continue
        nearest = NearestNeighbors(n_neighbors=15).fit(z[~here]).kneighbors(z[here])[1]
        own, told = x[here], x[~here][nearest].mean(axis=1)  # cells x genes
        varies = np.ptp(own, axis=0) > 0
        own, told = (values[:, varies] - values[:, varies].mean(axis=0) for values in (own, told))
        norm = np.linalg.norm(own, axis=0) * np.linalg.norm(told, axis=0)
        r = (own * told).sum(axis=0) / np.where(norm > 0, norm, 1)  # 0 where all are told the same
        shares.append(np.mean(r * np.abs(r)))
        sizes.append(here.sum())
    return float(np.average(shares, weights=sizes))


def markers():
    """Genes that tell types apart: corrected and pooled, against each batch by itself."""
    for name in ("pbmc_kang_10x3k", "cellbench_5batch", "pancreas_5tech_panc8"):
        adata = public(name)
        corrected = integrate(adata, "batch").layers["bioren"]
        raw = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
        kind, batch = (adata.obs[key].to_numpy(dtype=str) for key in ("cell_type", "batch"))
        for case, x in (("uncorrected", raw), ("corrected", corrected)):
            agreement = []
            for label in np.unique(kind):
                pooled = difference(x, kind == label)
                alone = [
                    difference(raw[batch == b], kind[batch == b] == label)
                    for b in np.unique(batch)
                    if min((kind[batch == b] == label).sum(), (kind[batch == b] != label).sum()) > 9
                ]
                if alone:
                    agreement.append(spearmanr(pooled, np.mean(alone, axis=0)).statistic)
            yield (
                f"markers: rank correlation with the batches' own, {name}",
                case,
                np.mean(agreement),
            )


def difference(x: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return Welch's t of each gene, cells against the others."""
    return np.nan_to_num(ttest_ind(x[cells], x[~cells], equal_var=False).statistic)


def main() -> None:
    warnings.simplefilter("ignore")
    rows = []
    questions = (
        null_halves,
        cell_lines,
        condition,
        composition,
        single_sample_types,
        unseen_genes,
        markers,
    )
    for question in questions:
        part = pd.DataFrame(question(), columns=["question", "case", "value"])
        rows.append(part)
        print(f"\n{question.__doc__.splitlines()[0]}")
        table = part.groupby(["question", "case"], sort=False)["value"].agg(["mean", "min", "max"])
        print(table.round(4).to_string(), flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    pd.concat(rows).to_csv(RESULTS / "safety.csv", index=False)


if __name__ == "__main__":
    main()
