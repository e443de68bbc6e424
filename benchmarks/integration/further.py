"""Scores that the total of scib-metrics leaves out; higher is better unless told otherwise.

CiLISI: batches among 90 neighbors within a type alone, 0 none other, 1 all alike; mean over types.
kSIM accepted: share of cells of whose 25 neighbors nine tenths have the cell's own type.
Leiden NMI, Leiden ARI: agreement of clusters of the neighbor graph with the types.
Batch NMI, Batch ARI: agreement of the same clusters with the batches; lower is better.
Clusters at 1: how many clusters Leiden makes at resolution 1, to be compared with the number before
    correction and that of the types; many more say that the method divides what is continuous.
Total without silhouettes: .6 bio (Leiden NMI and ARI, cLISI) + .4 batch (iLISI, kBET, graph
    connectivity, principal component regression); see below.
Without regression, either: the same, its batch score the mean of the three others; graphs have it.
Without silhouettes, from .2: the first total with the resolutions that scib-metrics tries.

Leiden is run at resolutions from .02 to 2, and the one that agrees best with the types is taken, by
NMI, as scIB does.  scib-metrics begins at .2, where embeddings whose groups lie far apart are
already divided further than the types are; so the total is told for that range as well.

BRAS, a silhouette made for batches, is one of the five metrics in the batch score of scib-metrics
and told in metrics.csv.  Silhouettes look at distances between whole groups, and can call batches
mixed that are not (Rautenstrauch and Ohler 2025, doi:10.1038/s41587-025-02743-4); three of the
total's ten metrics are such: silhouette of types, isolated labels and BRAS.

CiLISI follows Andreatta et al. 2024 (STACAS): a method cannot gain by mixing types.  kSIM follows
Li et al. 2020 (Pegasus).  The clusters' NMI and ARI with batches are above 0 even if all is well
where batches differ in composition.

What stays of the structure within types is asked in safety.py, since the genes that are to be told
have to be kept from the methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from methods import Graph
from scores import NEIGHBORS, REGRESSION, nearest_by_path, scored_cells

if TYPE_CHECKING:
    from anndata import AnnData
    from scib_metrics.nearest_neighbors import NeighborsResults

MOST = max(NEIGHBORS.values())
ALIKE, SHARE = 25, 0.9  # kSIM: neighbors, the cell itself included, and how many are of its type
THEIRS = tuple(fifths / 5 for fifths in range(1, 11))  # resolutions that scib-metrics tries
RESOLUTIONS = (0.02, 0.05, 0.1, 0.15, *THEIRS)
TOTAL, BARE_TOTAL = "without silhouettes", "without silhouettes, regression"
THEIR_TOTAL = "without silhouettes, from .2"
CLUSTERS = "clusters at 1"
FURTHER = [
    TOTAL,
    BARE_TOTAL,
    THEIR_TOTAL,
    "CiLISI",
    "kSIM accepted",
    "Leiden NMI",
    "Leiden ARI",
    "Batch NMI",
    "Batch ARI",
    CLUSTERS,
]


def further_scores(
    adata: AnnData, result: np.ndarray | Graph, found: dict[str, float]
) -> dict[str, float]:
    """Return the scores named in `FURTHER`, as far as they are known, given those of scib-metrics.

    Nothing is known of a graph that leaves some cell with too few others that it reaches.
    """
    cells = scored_cells(adata.obs["cell_type"])
    kind, batch = (adata.obs[key].iloc[cells].to_numpy(str) for key in ("cell_type", "batch"))
    near = nearest(result, cells, MOST)
    if near is None:
        return {}
    clusters = leiden(near)
    scores = {
        "CiLISI": mixing_within_types(result, cells, (kind, batch)),
        "kSIM accepted": own_type_around(near, kind),
        **agreement(best_of(clusters, RESOLUTIONS, kind), kind, batch),
        CLUSTERS: float(clusters[1].max() + 1),
    }
    theirs = agreement(best_of(clusters, THEIRS, kind), kind, batch)
    with_theirs = totals(found | theirs)
    more = {THEIR_TOTAL: with_theirs[TOTAL]} if TOTAL in with_theirs else {}
    return scores | totals(found | scores) | more


def nearest(result: np.ndarray | Graph, cells: np.ndarray, n: int) -> NeighborsResults | None:
    """Return the `n` nearest of `cells` among themselves, each one itself first."""
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    if isinstance(result, Graph):
        return nearest_by_path(result, cells, n)
    z = result[cells]
    distances, indices = NearestNeighbors(n_neighbors=n).fit(z).kneighbors(z)
    return NeighborsResults(indices, distances.astype(np.float32))


def mixing_within_types(
    result: np.ndarray | Graph, cells: np.ndarray, of_cells: tuple[np.ndarray, np.ndarray]
) -> float:
    """Return CiLISI: iLISI of each type's cells by themselves, mean over types of several batches.

    Higher is better.  NaN: no type has cells of several batches, or some cannot be reached.
    """
    import scib_metrics

    kinds, batches = of_cells
    found = []
    for kind in np.unique(kinds):
        here = kinds == kind
        if len(np.unique(batches[here])) < 2:
            continue
        near = nearest(result, cells[here], min(MOST, int(here.sum())))
        if near is None:
            return float("nan")
        found.append(scib_metrics.ilisi_knn(near, batches[here]))
    return float(np.mean(found)) if found else float("nan")


def own_type_around(near: NeighborsResults, kind: np.ndarray) -> float:
    """Return the share of cells that kSIM accepts, surrounded by their own type; more is better."""
    same = kind[near.indices[:, :ALIKE]] == kind[:, None]
    return float(np.mean(same.mean(axis=1) >= SHARE))


def leiden(near: NeighborsResults) -> dict[float, np.ndarray]:
    """Return clusters of the graph of 15 neighbors, by resolution."""
    import random

    import igraph
    from scipy.sparse import triu

    edges = triu(near.subset_neighbors(15).knn_graph_connectivities, 1).tocoo()
    graph = igraph.Graph(n=len(near.indices), edges=np.column_stack([edges.row, edges.col]))
    igraph.set_random_number_generator(random.Random(0))
    return {
        resolution: np.asarray(
            graph.community_leiden(
                "modularity", weights=edges.data.tolist(), resolution=resolution
            ).membership
        )
        for resolution in RESOLUTIONS
    }


def best_of(
    clusters: dict[float, np.ndarray], resolutions: tuple[float, ...], kind: np.ndarray
) -> np.ndarray:
    """Return the clusters that agree best with the types, by NMI, of those at `resolutions`."""
    from sklearn.metrics import normalized_mutual_info_score

    return max(
        (clusters[resolution] for resolution in resolutions),
        key=lambda found: normalized_mutual_info_score(kind, found),
    )


def agreement(clusters: np.ndarray, kind: np.ndarray, batch: np.ndarray) -> dict[str, float]:
    """Return NMI and ARI of clusters with types (more is better) and batches (less is better)."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return {
        f"{name} {metric}": float(score(labels, clusters))
        for name, labels in (("Leiden", kind), ("Batch", batch))
        for metric, score in (("NMI", normalized_mutual_info_score), ("ARI", adjusted_rand_score))
    }


def totals(found: dict[str, float]) -> dict[str, float]:
    """Return the totals without silhouettes, as far as known; more is better."""
    bio = np.mean([found[name] for name in ("Leiden NMI", "Leiden ARI", "cLISI")])
    mixing = [found[name] for name in ("iLISI", "KBET", "Graph connectivity")]
    known = {BARE_TOTAL: float(0.6 * bio + 0.4 * np.mean(mixing))}
    if REGRESSION in found:
        known[TOTAL] = float(0.6 * bio + 0.4 * np.mean([*mixing, found[REGRESSION]]))
    return known
