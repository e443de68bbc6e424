"""The demonstration: real cells, a planted batch effect, what is recovered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors

from bioren import datasets, tools
from bioren.files.atomic import atomic_write

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

__all__ = ["Demo", "run"]

LAB, CELL_TYPE = "lab", "cell_type"
NEIGHBORS = 15


class Demo(NamedTuple):
    """What the demonstration found.

    Attributes
    ----------
    recovery
        A row per lab: cells, and the rank correlation over the genes of planted and recovered
        ``d`` and ``r``.
    scores
        Rows ``before`` and ``after``; columns ``same type`` and ``same lab``: share of a cell's
        15 nearest neighbors, and last the row ``by chance``.
    figure, data
        Files written.
    """

    recovery: pd.DataFrame
    scores: pd.DataFrame
    figure: Path
    data: Path


def run(folder: Path, *, rng: int = 0, progress: bool = True) -> Demo:
    """Plant a batch effect in real cells, remove it, compare, and write picture and data.

    Parameters
    ----------
    folder
        Where ``demo.png`` and ``demo.h5ad`` are written (replaced, if they are there); made if
        it does not exist.  Nothing is written elsewhere.
    rng
        Seed.
    progress
        Whether to show progress.

    Raises
    ------
    OSError
        The folder cannot be made or written.
    """
    import scanpy as sc

    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: name a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    adata = datasets.four_labs(rng=rng)
    sc.pp.pca(adata, n_comps=30, random_state=rng)
    tools.integrate(adata, LAB, rng=rng, progress=progress)
    for basis, key in (("X_pca", "before"), ("X_bioren", "after")):
        sc.pp.neighbors(adata, NEIGHBORS, use_rep=basis, key_added=key, random_state=rng)
        sc.tl.umap(adata, neighbors_key=key, key_added=f"X_umap_{key}", random_state=rng)

    recovery = _recovery(adata)
    scores = pd.DataFrame(
        {
            "before": _neighbor_shares(adata, adata.obsm["X_pca"]),
            "after": _neighbor_shares(adata, adata.obsm["X_bioren"]),
            "by chance": _chance(adata),
        }
    ).T
    figure, data = folder / "demo.png", folder / "demo.h5ad"
    with atomic_write(figure, overwrite=True) as path:
        _draw(adata, path)
    with atomic_write(data, overwrite=True) as path:
        adata.write_h5ad(path)
    return Demo(recovery, scores, figure, data)


def _recovery(adata: AnnData) -> pd.DataFrame:
    planted, found = adata.uns["planted"], adata.uns["bioren"]
    rows = [
        {
            "cells": int(found["cells"][lab]),
            "d": spearmanr(planted["d"][lab], found["d"][lab]).statistic,
            "r": spearmanr(planted["r"][lab], found["r"][lab]).statistic,
        }
        for lab in range(len(found["samples"]))
    ]
    return pd.DataFrame(rows, index=pd.Index(found["samples"], name=LAB))


def _neighbor_shares(adata: AnnData, z: np.ndarray) -> dict[str, float]:
    search = NearestNeighbors(n_neighbors=NEIGHBORS).fit(z)
    neighbors = search.kneighbors(return_distance=False)  # cells x neighbors, not the cell itself
    shares = {}
    for name, key in (("same type", CELL_TYPE), ("same lab", LAB)):
        codes = adata.obs[key].cat.codes.to_numpy()
        shares[name] = float((codes[neighbors] == codes[:, None]).mean())
    return shares


def _chance(adata: AnnData) -> dict[str, float]:
    def meeting(cells: pd.DataFrame, key: str) -> float:
        return float((cells[key].value_counts(normalize=True) ** 2).sum())

    # Labs differ in composition: by chance means among cells of the same type.
    by_type = adata.obs.groupby(CELL_TYPE, observed=True)
    same_lab = sum(len(cells) * meeting(cells, LAB) for _, cells in by_type) / adata.n_obs
    return {"same type": meeting(adata.obs, CELL_TYPE), "same lab": same_lab}


def _draw(adata: AnnData, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.2), layout="constrained", dpi=110)
    axes = figure.subplots(2, 3, gridspec_kw={"width_ratios": [1, 1, 1.05]})
    for row, (when, title) in enumerate((("before", "before"), ("after", "after bioren"))):
        place = adata.obsm[f"X_umap_{when}"]
        _scatter(axes[row, 0], place, adata.obs[LAB], title=f"{title}: labs")
        _scatter(axes[row, 1], place, adata.obs[CELL_TYPE], title=f"{title}: cell types")
    labs, types = (axes[0, column].get_legend_handles_labels() for column in (0, 1))
    figure.legend(*labs, loc="outside lower left", ncols=2, fontsize=8, markerscale=2)
    figure.legend(*types, loc="outside lower center", ncols=4, fontsize=8, markerscale=2)
    planted, found = adata.uns["planted"], adata.uns["bioren"]
    _compare(axes[0, 2], planted["d"], found["d"], name="shift d (sd)")
    _compare(axes[1, 2], np.log2(planted["r"]), np.log2(found["r"]), name="log2 scale r")
    figure.suptitle("700 blood cells from four labs, each with a planted bridge per gene")
    figure.savefig(path, format="png")


def _scatter(ax: Axes, place: np.ndarray, labels: pd.Series, *, title: str) -> None:
    import matplotlib

    categories = labels.cat.categories
    colors = matplotlib.colormaps["tab10"](np.arange(len(categories)) % 10)
    codes = labels.cat.codes.to_numpy()
    order = np.random.default_rng(0).permutation(len(codes))  # no lab hides another
    ax.scatter(place[order, 0], place[order, 1], c=colors[codes[order]], s=7, linewidths=0)
    for name, color in zip(categories, colors, strict=True):
        ax.scatter([], [], color=color, label=str(name), s=7, linewidths=0)  # for the legend
    ax.set(title=title, xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")


def _compare(ax: Axes, planted: np.ndarray, found: np.ndarray, *, name: str) -> None:
    correlation = spearmanr(planted, found, axis=None).statistic
    low, high = np.percentile(planted, [0.1, 99.9])
    ax.plot([low, high], [low, high], color="0.6", linewidth=1, zorder=1)
    ax.scatter(planted.ravel(), found.ravel(), s=4, linewidths=0, alpha=0.5, zorder=2)
    ax.set(xlabel=f"planted {name}", ylabel=f"recovered {name}")
    ax.set_title(f"rank correlation {correlation:.2f}")
