"""Does integration leave alone what it should?  Null data, conditions, composition, markers.

    python benchmarks/integration/safety.py [QUESTION ...] [--output FOLDER]

Needs the public sets in the folder BIOREN_DATA.  Each question is told by the function that answers
it; without names all are asked.  Answers are written to safety.csv in the folder of results, as
rows of (question, case, value).
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
from methods import METHODS, harmony
from run import RESULTS
from scipy.stats import spearmanr, ttest_ind
from sklearn.metrics import adjusted_rand_score
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
    """Random halves of one donor, 5 splits: what is kept, and genes that differ afterwards.

    Each method's embedding is compared with the one it begins from.  Clusters are Leiden's at
    resolution 1; two starts on the embedding before tell in how far they are certain at all.  By
    chance .05 of the genes have p < .05; fewer say that the halves' means were made equal.
    """
    adata = public("kang_pbmc_ctrl_8donors")
    adata = adata[adata.obs["batch"] == "1015"].copy()
    sc.pp.pca(adata, n_comps=50)
    for split in range(5):
        half = np.random.default_rng(split).permutation(adata.n_obs) % 2
        adata.obs["half"] = pd.Categorical(half.astype(str))
        halves = renamed(adata, "half")
        placed, expressed = pairs_of_ours(halves)
        theirs = pairs_of_peers(halves, split)
        placed |= theirs[0]
        expressed |= theirs[1]
        for method, pair in placed.items():
            yield "null: share of 15 neighbors kept", method, overlap(*pair)
            yield "null: clusters kept (ARI)", method, clusters_kept(*pair)
            again = clusters_kept(pair[0], pair[0])
            yield "null: clusters of two starts, before (ARI)", method, again
        for method, pair in expressed.items():
            for when, x in zip(("before", "after"), pair, strict=True):
                p = np.nan_to_num(
                    ttest_ind(x[half == 0], x[half == 1], equal_var=False).pvalue, nan=1
                )
                case = f"{method}, {when}"
                yield "null: share of genes with p < .05", case, (p < 0.05).mean()
                yield "null: genes with p < .05 / genes", case, (p < 0.05 / len(p)).sum()


Pairs = dict[str, tuple[np.ndarray, np.ndarray]]  # by method: before and after


def pairs_of_ours(adata) -> tuple[Pairs, Pairs]:
    """Return bioren's embeddings and expression, before and after."""
    even, untouched = (integrate(adata, "batch", strength=s) for s in (1, 0))
    on_pca = integrate(adata, "batch", use_rep="X_pca").obsm["X_bioren"]
    placed = {
        "bioren, from genes": (untouched.obsm["X_bioren"], even.obsm["X_bioren"]),
        "bioren, from X_pca": (adata.obsm["X_pca"], on_pca),
    }
    return placed, {"bioren": (adata.X.toarray(), even.layers["bioren"])}


def pairs_of_peers(adata, seed: int) -> tuple[Pairs, Pairs]:
    """Return the peers' embeddings and expression, before and after; Harmony has no expression."""
    pca = adata.obsm["X_pca"]
    placed = {
        "harmony": (pca, METHODS["harmony"].run(adata, seed)),
        "harmony 20": (pca[:, :20], METHODS["harmony 20"].run(adata, seed)),
    }
    dense = adata.copy()
    placed["combat"] = pca, METHODS["combat"].run(dense, seed)
    expressed = {"combat": (adata.X.toarray(), dense.X)}
    for dimensions in (100, 50):
        # No alignment scores above 1, so that nothing is matched: what Scanorama begins from.
        (before, x), (after, corrected) = (
            scanorama_of(adata, seed=seed, dimred=dimensions, alpha=alpha) for alpha in (2, 0.1)
        )
        placed[f"scanorama {dimensions}"] = before, after
        expressed["scanorama"] = x, corrected
    return placed, expressed


def scanorama_of(adata, **options) -> tuple[np.ndarray, np.ndarray]:
    """Return Scanorama's embedding and expression, in the order of the cells and genes."""
    import scanorama

    batch = adata.obs["batch"]
    parts = [adata[batch == name].copy() for name in batch.cat.categories]
    found = scanorama.correct_scanpy(parts, return_dimred=True, verbose=False, **options)
    order = np.argsort(np.concatenate([np.flatnonzero(batch == n) for n in batch.cat.categories]))
    z = np.concatenate([part.obsm["X_scanorama"] for part in found])
    x = np.concatenate([part[:, adata.var_names].X.toarray() for part in found])
    return z[order], x[order]


def clusters_kept(before: np.ndarray, after: np.ndarray) -> float:
    """Return how clusters of the one agree with those of the other: adjusted Rand index."""
    found = []
    for seed, z in enumerate((before, after)):
        cells = anndata.AnnData(np.ascontiguousarray(z, dtype=np.float32))
        sc.pp.neighbors(cells, use_rep="X", random_state=0)
        sc.tl.leiden(cells, flavor="igraph", n_iterations=-1, directed=False, random_state=seed)
        found.append(cells.obs["leiden"].to_numpy())
    return adjusted_rand_score(*found)


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
    whether biology or depth, which is seen in all genes.  "Within types" asks each type by itself:
    what is told there is structure that a score of types does not see.
    """
    for name, adata in sets_of_several_types():
        rng = np.random.default_rng(5)
        apart = rng.permutation(adata.n_vars) < adata.n_vars // 5
        cells = rng.permutation(adata.n_obs)[:6000]
        seen, unseen = adata[cells][:, ~apart].copy(), adata.X[cells][:, apart].toarray()
        sc.pp.pca(seen, n_comps=50)
        batch, kind = (seen.obs[key].to_numpy(dtype=str) for key in ("batch", "cell_type"))
        for method in ASKED:
            z = METHODS[method].run(seen.copy(), 0)
            question = "unseen genes: share told by 15 neighbors of other samples"
            yield f"{question}, {name}", method, told_by_others(z, batch, unseen)
            within = told_within(z, (kind, batch), unseen)
            yield f"{question}, within types, {name}", method, within


ASKED = (
    "pca",
    "harmony",
    "harmony 20",
    "scanorama",
    "scanorama 50",
    "combat",
    "bioren",
    "bioren, no denoising",
)


def sets_of_several_types():
    """Yield the core sets, eight donors, and their T cells alone, with names."""
    for name in (*CORE, "kang_pbmc_ctrl_8donors"):
        adata = public(name)
        yield name, adata
    t_cells = adata[adata.obs["cell_type"].isin(["CD4 T cells", "CD8 T cells"])].copy()
    yield f"{name}, T cells", t_cells


def told_within(z: np.ndarray, labels: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> float:
    """Return `told_by_others` of each type by itself, weighted by cells; types with 60 or more."""
    kinds, batch = labels
    shares, sizes = [], []
    for kind in np.unique(kinds):
        here = kinds == kind
        found = told_by_others(z[here], batch[here], x[here]) if here.sum() >= 60 else np.nan
        if np.isfinite(found):
            shares.append(found)
            sizes.append(here.sum())
    return float(np.average(shares, weights=sizes))


def told_by_others(z: np.ndarray, batch: np.ndarray, x: np.ndarray) -> float:
    """Return the share of variance within samples that neighbors of other samples tell.

    It is r * |r|, the mean over the genes that vary in a sample; samples count by their cells,
    those with fewer than 30 not at all, nor if the others together have fewer.  NaN: none counts.
    """
    shares, sizes = [], []
    for sample in np.unique(batch):
        here = batch == sample
        if min(here.sum(), (~here).sum()) < 30:
            continue
        nearest = NearestNeighbors(n_neighbors=15).fit(z[~here]).kneighbors(z[here])[1]
        own, told = x[here], x[~here][nearest].mean(axis=1)  # cells x genes
        varies = np.ptp(own, axis=0) > 0
        own, told = (values[:, varies] - values[:, varies].mean(axis=0) for values in (own, told))
        norm = np.linalg.norm(own, axis=0) * np.linalg.norm(told, axis=0)
        r = (own * told).sum(axis=0) / np.where(norm > 0, norm, 1)  # 0 where all are told the same
        shares.append(np.mean(r * np.abs(r)))
        sizes.append(here.sum())
    return float(np.average(shares, weights=sizes)) if shares else float("nan")


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


QUESTIONS = {
    question.__name__: question
    for question in (
        null_halves,
        cell_lines,
        condition,
        composition,
        single_sample_types,
        unseen_genes,
        markers,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="*", help=f"of {', '.join(QUESTIONS)}; none: all")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args()
    unknown = sorted(set(options.questions) - set(QUESTIONS))
    if unknown:
        parser.error(f"unknown questions {unknown}; choose from {list(QUESTIONS)}")
    warnings.simplefilter("ignore")
    rows = []
    for name in options.questions or QUESTIONS:
        question = QUESTIONS[name]
        part = pd.DataFrame(question(), columns=["question", "case", "value"])
        rows.append(part)
        print(f"\n{question.__doc__.splitlines()[0]}")
        table = part.groupby(["question", "case"], sort=False)["value"].agg(["mean", "min", "max"])
        print(table.round(4).to_string(), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    pd.concat(rows).to_csv(options.output / "safety.csv", index=False)


if __name__ == "__main__":
    main()
