"""Score bioren beside its peers on real data: `make benchmarks`.

    python benchmarks/run.py [FILE.h5ad ...] [--methods "pca; bioren"] [--seeds 3]

Each file needs obs["batch"] and obs["cell_type"]; without files, the four core sets of the folder
that BIOREN_DATA names are taken.  All methods get the same input (CP10k, log1p, 2,000 variable
genes by batch, 50 principal components) and run in a process of their own, one after the other,
so that seconds and peak memory can be compared.  Scores are those of scib-metrics, unscaled, on
at most 4,000 cells, types of fewer than 10 cells left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

CORE = ("pbmc_kang_10x3k", "cellbench_5batch", "pancreas_5tech_panc8", "kang_pbmc_ctrl_stim")
MOST_CELLS = 4000
SCORES = {"Total": "total", "Bio conservation": "bio", "Batch correction": "batch"}


def prepared(path: Path):
    """Return log-expression of the variable genes, with principal components."""
    import anndata
    import scanpy as sc

    adata = anndata.read_h5ad(path)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    if adata.n_vars > 2000:
        sc.pp.highly_variable_genes(adata, n_top_genes=2000, batch_key="batch")
        adata = adata[:, adata.var["highly_variable"]].copy()
        del adata.var["highly_variable"]
    sc.pp.pca(adata, n_comps=50)
    return adata


def pca(adata, seed):
    return adata.obsm["X_pca"]


def harmony(adata, seed):
    import harmonypy

    found = harmonypy.run_harmony(
        adata.obsm["X_pca"], adata.obs, "batch", verbose=False, random_state=seed
    )
    z = np.asarray(found.Z_corr)
    return z if len(z) == adata.n_obs else z.T


def combat(adata, seed):
    import scanpy as sc

    dense = adata.copy()
    dense.X = dense.X.toarray()
    sc.pp.combat(dense, "batch")
    sc.pp.pca(dense, n_comps=50)
    return dense.obsm["X_pca"]


def scanorama(adata, seed):
    import scanorama

    names = adata.obs["batch"].cat.categories
    parts = [adata[adata.obs["batch"] == name].copy() for name in names]
    scanorama.integrate_scanpy(parts, seed=seed)
    z = pd.concat([pd.DataFrame(p.obsm["X_scanorama"], index=p.obs_names) for p in parts])
    return z.loc[adata.obs_names].to_numpy()


def bioren(adata, seed):
    import bioren

    bioren.tl.integrate(adata, "batch", rng=seed, progress=False)
    return adata.obsm["X_bioren"]


def bioren_no_training(adata, seed):
    import bioren
    from bioren.training import TrainingOptions

    options = TrainingOptions(max_epochs=0)
    bioren.tl.integrate(adata, "batch", rng=seed, training=options, progress=False)
    return adata.obsm["X_bioren"]


def bioren_genes(adata, seed):
    import scanpy as sc

    import bioren

    bioren.pp.bridge(adata, "batch", rng=seed)
    adata.X = adata.layers["bioren"]
    sc.pp.pca(adata, n_comps=30)
    return adata.obsm["X_pca"]


def bioren_states(adata, seed):
    import bioren

    bioren.tl.integrate(adata, "batch", use_rep="X_pca", rng=seed)
    return adata.obsm["X_bioren"]


METHODS = {
    "pca": pca,
    "harmony": harmony,
    "scanorama": scanorama,
    "combat": combat,
    "bioren": bioren,
    "bioren, no training": bioren_no_training,
    "bioren, genes alone (pp.bridge)": bioren_genes,
    "bioren, states alone (use_rep)": bioren_states,
}
RANDOM = [name for name in METHODS if name.startswith("bioren")] + ["harmony", "scanorama"]


def measured(path: Path, method: str, seed: int, answer) -> None:
    """Run one method; send its embedding, seconds and peak memory (in child process)."""
    warnings.simplefilter("ignore")
    adata = prepared(path)
    start = time.perf_counter()
    z = METHODS[method](adata, seed)
    seconds = time.perf_counter() - start
    answer.send((np.ascontiguousarray(z, dtype=np.float32), seconds, peak_gigabytes()))


def peak_gigabytes() -> float:
    """Return this process's peak memory; getrusage would count its parent's before the start."""
    status = Path("/proc/self/status")
    if not status.exists():  # not on Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6


def run_apart(path: Path, method: str, seed: int):
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=measured, args=(path, method, seed, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        child.join()


def scored(adata, embeddings: dict[str, np.ndarray]) -> pd.DataFrame:
    import anndata
    from scib_metrics.benchmark import Benchmarker

    kind = adata.obs["cell_type"].astype(str)
    cells = np.flatnonzero(kind.map(kind.value_counts()) >= 10)
    if len(cells) > MOST_CELLS:
        cells = np.sort(np.random.default_rng(0).choice(cells, MOST_CELLS, replace=False))
    part = anndata.AnnData(np.zeros((len(cells), 1), np.float32), obs=adata.obs.iloc[cells].copy())
    part.obsm["X_pca"] = np.ascontiguousarray(adata.obsm["X_pca"][cells])
    for name, z in embeddings.items():
        part.obsm[name] = np.ascontiguousarray(z[cells])
    benchmark = Benchmarker(
        part,
        "batch",
        "cell_type",
        list(embeddings),
        pre_integrated_embedding_obsm_key="X_pca",
        n_jobs=1,
        progress_bar=False,
    )
    benchmark.benchmark()
    table = benchmark.get_results(min_max_scale=False).loc[list(embeddings), list(SCORES)]
    return table.astype(float).rename(columns=SCORES)


def compare(path: Path, methods: list[str], n_seeds: int) -> pd.DataFrame:
    adata = prepared(path)
    rows, embeddings = [], {}
    for method in methods:
        for seed in range(n_seeds if method in RANDOM else 1):
            z, seconds, peak = run_apart(path, method, seed)
            embeddings[f"{method} {seed}"] = z
            rows.append({"method": method, "seconds": seconds, "peak GB": peak})
    table = pd.DataFrame(rows, index=list(embeddings)).join(scored(adata, embeddings))
    table.insert(0, "data", path.stem)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--methods", default="pca; harmony; scanorama; combat; bioren")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    files = options.files
    if not files:
        if "BIOREN_DATA" not in os.environ:
            parser.error("name .h5ad files, or set BIOREN_DATA to the folder of the core sets")
        files = [Path(os.environ["BIOREN_DATA"]) / f"{name}.h5ad" for name in CORE]
    methods = list(METHODS)
    if options.methods != "all":
        methods = [name.strip() for name in options.methods.split(";")]
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        parser.error(f"unknown methods {unknown}; choose from {list(METHODS)}")

    warnings.simplefilter("ignore")
    options.output.mkdir(parents=True, exist_ok=True)
    tables = []
    for path in files:
        tables.append(compare(path, methods, options.seeds))
        pd.concat(tables).to_csv(options.output / "integration.csv")
        numbers = tables[-1].drop(columns="data").groupby("method", sort=False)
        print(f"\n{path.stem}: mean over seeds (range of total)")
        mean = numbers.mean().round(3)
        mean["range"] = numbers["total"].agg(lambda total: f"{total.min():.3f}-{total.max():.3f}")
        print(mean.to_string(), flush=True)


if __name__ == "__main__":
    main()
