"""Data with a known batch effect, to see what is recovered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bioren.adata.obs import read_batches
from bioren.arrays.apply import apply_by_sample
from bioren.arrays.moments import Moments
from bioren.bridge import AffineBridge

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["four_labs", "plant_bridge", "simulated"]


def four_labs(*, rng: int | np.random.Generator = 0) -> AnnData:
    """Return 700 real blood cells as if four laboratories had measured them.

    The cells are the 10x PBMC (Zheng et al. 2017, *Nature Communications* 8:14049) that come
    with scanpy, log-normalized.  They are divided over four labs with different compositions
    of cell types; then each lab gets a known bridge per gene.

    Parameters
    ----------
    rng
        Seed or generator.

    Returns
    -------
    AnnData
        700 cells x 765 genes; ``obs`` holds ``lab`` and ``cell_type``, ``uns["planted"]`` the
        known ``r`` and ``d``, see `plant_bridge`.
    """
    import scanpy as sc

    rng = np.random.default_rng(rng)
    source = sc.datasets.pbmc68k_reduced()
    adata = source.raw.to_adata()
    cell_type = source.obs["bulk_labels"].astype(str)
    adata.obs = pd.DataFrame({"cell_type": cell_type.astype("category")})
    for slots in (adata.uns, adata.obsm, adata.varm, adata.obsp):
        slots.clear()
    adata.var = adata.var[[]].copy()

    labs = np.array(["Amsterdam", "Boston", "Chengdu", "Dakar"])
    lab = np.empty(adata.n_obs, dtype=object)
    for name in cell_type.unique():
        cells = np.flatnonzero(cell_type == name)
        lab[cells] = rng.choice(labs, len(cells), p=rng.dirichlet(np.full(4, 2.0)))
    adata.obs["lab"] = pd.Categorical(lab, categories=labs)
    plant_bridge(adata, "lab", rng=rng)
    return adata


def simulated(
    n_cells: int = 600,
    n_genes: int = 200,
    *,
    n_types: int = 4,
    n_samples: int = 3,
    rng: int | np.random.Generator = 0,
) -> AnnData:
    """Return simulated log-expression of several samples with a known bridge.

    Counts are Poisson around a profile per type; each sample has its own composition.

    Parameters
    ----------
    n_cells, n_genes, n_types, n_samples
        Sizes.
    rng
        Seed or generator.

    Returns
    -------
    AnnData
        ``obs`` holds ``sample`` and ``cell_type``, ``uns["planted"]`` the known ``r`` and
        ``d``, see `plant_bridge`.
    """
    from anndata import AnnData

    rng = np.random.default_rng(rng)
    profiles = rng.gamma(0.5, size=(n_types, n_genes)) * 4 + 0.05
    composition = rng.dirichlet(np.full(n_types, 2.0), size=n_samples)
    sample = rng.permutation(np.arange(n_cells) % n_samples)
    cell_type = np.array([rng.choice(n_types, p=composition[s]) for s in sample])
    counts = rng.poisson(profiles[cell_type] * rng.lognormal(0, 0.2, size=(n_cells, 1)))
    depth = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    x = np.log1p(counts / depth * np.median(depth)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "sample": pd.Categorical([f"sample{s + 1}" for s in sample]),
            "cell_type": pd.Categorical([f"type{t + 1}" for t in cell_type]),
        },
        index=[f"cell{i + 1}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"gene{i + 1}" for i in range(n_genes)])
    adata = AnnData(x, obs=obs, var=var)
    plant_bridge(adata, "sample", rng=rng)
    return adata


def plant_bridge(
    adata: AnnData,
    batch_key: str,
    *,
    spread_r: float = 0.2,
    spread_d: float = 0.5,
    rng: int | np.random.Generator = 0,
) -> None:
    """Give each sample a known batch effect: ``adata.X`` becomes dense and is overwritten.

    ``x' = mean + sd * (r * z + d)`` with the gene's mean and standard deviation over all cells,
    ``z`` its normalized value, ``log r`` and ``d`` normal and 0 on average over the samples.

    Parameters
    ----------
    adata
        Log-expression.
    batch_key
        Column of ``adata.obs`` that says which sample a cell is from; two samples or more.
    spread_r, spread_d
        Standard deviations of ``log r`` and ``d``.
    rng
        Seed or generator.

    Returns
    -------
    None
        ``uns["planted"]`` holds ``samples``, ``r`` and ``d``, of shape ``(samples, genes)``.
    """
    rng = np.random.default_rng(rng)
    batches = read_batches(adata, batch_key)
    shape = (len(batches.names), adata.n_vars)
    log_r, d = rng.normal(0, spread_r, shape), rng.normal(0, spread_d, shape)
    r, d = np.exp(log_r - log_r.mean(axis=0)), d - d.mean(axis=0)

    moments = Moments.of(adata.X)
    planted = AffineBridge(r, moments.mean * (1 - r) + moments.std() * d)
    adata.X = apply_by_sample(adata.X, batches.codes, planted)
    adata.uns["planted"] = {"samples": np.array(batches.names, dtype=object), "r": r, "d": d}
