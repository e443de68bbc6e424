"""Scores of an embedding or a graph by scib-metrics, unscaled.

At most 4,000 cells are scored, the same for every method; types of fewer than 10 cells are left
out.  Total = 0.6 bio + 0.4 batch, each the mean of five metrics.

Two of the metrics compare types with one k-means clustering, and one start of k-means or another
moves the total by .02 and more.  The steady total takes their means over eight starts.

One of the metrics of batch correction, principal component regression, asks for equal compositions,
and compares what samples explain with all variance of the embedding: noise that a method leaves in
counts in its favor.  The steady total is therefore told without it as well.

A graph has no coordinates, so that silhouettes, k-means and regression on components are left
blank, and with them bio, batch and total.  For the metrics that look at neighbors alone, the
neighbors are those of shortest paths along the edges, as in scIB (Luecken et al. 2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from methods import Graph

if TYPE_CHECKING:
    from anndata import AnnData
    from scib_metrics.nearest_neighbors import NeighborsResults

MOST_CELLS = 4000
FEWEST_OF_TYPE = 10
STARTS = 8
NEIGHBORS = {"cLISI": 90, "iLISI": 90, "KBET": 50, "Graph connectivity": 15}  # as scib-metrics has
REGRESSION = "PCR comparison"
TOTALS = {"Total": "total", "Bio conservation": "bio", "Batch correction": "batch"}


def scored_cells(cell_type) -> np.ndarray:
    """Return the positions of the cells that are scored."""
    kind = cell_type.astype(str)
    cells = np.flatnonzero(kind.map(kind.value_counts()) >= FEWEST_OF_TYPE)
    if len(cells) > MOST_CELLS:
        cells = np.sort(np.random.default_rng(0).choice(cells, MOST_CELLS, replace=False))
    return cells


def scores(adata: AnnData, result: np.ndarray | Graph) -> dict[str, float]:
    """Return each metric, then `total`, `steady`, `bio` and `batch` where they are known.

    `steady without regression` is the steady total whose batch score has four metrics.
    """
    cells = scored_cells(adata.obs["cell_type"])
    if isinstance(result, Graph):
        return _of_graph(adata, result, cells)
    return _of_embedding(adata, result, cells)


def _of_embedding(adata: AnnData, z: np.ndarray, cells: np.ndarray) -> dict[str, float]:
    import anndata
    from scib_metrics.benchmark import Benchmarker

    part = anndata.AnnData(np.zeros((len(cells), 1), np.float32), obs=adata.obs.iloc[cells].copy())
    part.obsm["X_pca"] = np.ascontiguousarray(adata.obsm["X_pca"][cells])
    part.obsm["z"] = np.ascontiguousarray(z[cells])
    benchmark = Benchmarker(
        part,
        "batch",
        "cell_type",
        ["z"],
        pre_integrated_embedding_obsm_key="X_pca",
        n_jobs=1,
        progress_bar=False,
    )
    benchmark.benchmark()
    results = benchmark.get_results(min_max_scale=False).loc["z"].astype(float)
    found = results.rename(TOTALS).to_dict()
    kind = part.obs["cell_type"].to_numpy(dtype=str)
    steady = _steady_total(part.obsm["z"], kind, found)
    others = without_regression(found, steady)
    return found | {"steady": steady, "steady without regression": others}


def without_regression(found: dict[str, float], total: float) -> float:
    """Return a total with the mean of the other four metrics as its batch score."""
    others = (5 * found["batch"] - found[REGRESSION]) / 4
    return total + 0.4 * (others - found["batch"])


def _steady_total(z: np.ndarray, kind: np.ndarray, found: dict[str, float]) -> float:
    """Return the total with the means over starts of k-means, from the scored cells alone."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    changes = []
    for start in range(STARTS):
        k_means = KMeans(len(np.unique(kind)), n_init=1, random_state=start)
        clusters = k_means.fit_predict(z)
        nmi = normalized_mutual_info_score(kind, clusters)
        ari = adjusted_rand_score(kind, clusters)
        changes.append(nmi - found["KMeans NMI"] + ari - found["KMeans ARI"])
    # Each is one of five metrics of bio conservation.
    return found["total"] + 0.6 * float(np.mean(changes)) / 5


def _of_graph(adata: AnnData, graph: Graph, cells: np.ndarray) -> dict[str, float]:
    import scib_metrics

    near = nearest_by_path(graph, cells, max(NEIGHBORS.values()))
    if near is None:
        return {}
    few = {name: near.subset_neighbors(n) for name, n in NEIGHBORS.items()}
    batch, kind = (adata.obs[key].iloc[cells].to_numpy() for key in ("batch", "cell_type"))
    return {
        "cLISI": float(scib_metrics.clisi_knn(few["cLISI"], kind)),
        "iLISI": float(scib_metrics.ilisi_knn(few["iLISI"], batch)),
        "KBET": float(scib_metrics.kbet_per_label(few["KBET"], batch, kind)),
        "Graph connectivity": float(
            scib_metrics.graph_connectivity(few["Graph connectivity"], kind)
        ),
    }


def nearest_by_path(graph: Graph, cells: np.ndarray, n: int) -> NeighborsResults | None:
    """Return the `n` nearest of `cells` by shortest paths through all cells, each one itself first.

    None: some cell does not reach so many.
    """
    from scib_metrics.nearest_neighbors import NeighborsResults
    from scipy.sparse.csgraph import dijkstra

    indices = np.empty((len(cells), n), dtype=np.int64)
    distances = np.empty((len(cells), n), dtype=np.float32)
    edges = graph.distances.maximum(graph.distances.T)
    for start in range(0, len(cells), 500):
        rows = slice(start, min(start + 500, len(cells)))
        lengths = dijkstra(edges, directed=False, indices=cells[rows])[:, cells]
        order = np.argsort(lengths, axis=1, kind="stable")[:, :n]
        indices[rows] = order
        distances[rows] = np.take_along_axis(lengths, order, axis=1)
    return NeighborsResults(indices, distances) if np.isfinite(distances).all() else None
