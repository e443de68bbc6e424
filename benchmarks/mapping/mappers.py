"""Every way of mapping a query onto a reference, with the settings that its authors propose.

A method first learns from the reference, then maps the query; what it may read is told in cases.py.
It gives a joint embedding, and some say of each query cell how well the reference knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

NEIGHBORS = 15


class Reference(NamedTuple):
    """What a method learned, and the embedding of the reference's cells."""

    model: Any
    embedding: np.ndarray


class Mapped(NamedTuple):
    """The query in the reference's embedding.

    Attributes
    ----------
    embedding
        Cells x dimensions.
    score
        Of each cell, higher where the reference knows such cells; None: the method has none.
    labels
        Cell types by what the method itself learned of them; None: it learned none.
    """

    embedding: np.ndarray
    score: np.ndarray | None = None
    labels: np.ndarray | None = None


class Method(NamedTuple):
    """Two functions, and what has to be known to run them; see integration/methods.py."""

    fit: Callable[[AnnData, int], Reference]
    map: Callable[[AnnData, AnnData, Reference], Mapped]
    package: str
    modules: tuple[str, ...]
    random: bool = True
    slow: bool = False
    scores: bool = True

    @property
    def ours(self) -> bool:
        return self.package == "bioren"


def fit_pca(reference, seed):
    from sklearn.decomposition import PCA

    n = min(50, min(reference.shape) - 1)
    pca = PCA(n, svd_solver="arpack", random_state=0)
    return Reference(pca, pca.fit_transform(reference.X.toarray()))


def map_pca(query, reference, fitted):
    """Project, and correct nothing; the score is the mean distance to the nearest neighbors."""
    from sklearn.neighbors import NearestNeighbors

    z = fitted.model.transform(query.X.toarray())
    near = NearestNeighbors(n_neighbors=NEIGHBORS).fit(fitted.embedding)
    return Mapped(z, -near.kneighbors(z)[0].mean(axis=1))


def fit_symphony(reference, seed):
    """Return Harmony's embedding of scaled genes' components; of one batch the components.

    symphonypy 0.2.4 takes the mean of each cluster of a single batch for the sum over its cells,
    which the original computes and Harmony's way here, too; the sum is put in its place.  With the
    means every query is drawn to the origin.
    """
    import scanpy as sc
    import symphonypy as sp
    from symphonypy._utils import _run_soft_kmeans

    sc.pp.scale(reference, max_value=10)
    sc.pp.pca(reference, n_comps=30, zero_center=False)
    if reference.obs["batch"].nunique() > 1:
        sp.pp.harmony_integrate(reference, key="batch", random_seed=seed)
        return Reference("X_pca_harmony", reference.obsm["X_pca_harmony"])
    np.random.seed(seed)  # noqa: NPY002  k-means has no seed of its own
    _run_soft_kmeans(reference)
    found = reference.uns["harmony"]
    found["C"] = found["R"] @ reference.obsm["X_pca"]
    return Reference("X_pca", reference.obsm["X_pca"])


def map_symphony(query, reference, fitted):
    """Map, with its distance of each cell to the reference's clusters."""
    import symphonypy as sp

    sp.tl.map_embedding(query, reference, use_genes_column=None)
    sp.tl.per_cell_confidence(query, reference, ref_basis_adjusted=fitted.model)
    distance = query.obs["symphony_per_cell_dist"].to_numpy(dtype=float)
    return Mapped(query.obsm["X_pca_harmony"], -distance)


def fit_scarches(reference, seed):
    import scvi

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(reference, layer="counts", batch_key="batch")
    model = scvi.model.SCVI(
        reference,
        use_layer_norm="both",
        use_batch_norm="none",
        encode_covariates=True,
        dropout_rate=0.2,
        n_layers=2,
    )
    model.train(enable_progress_bar=False)
    return Reference(model, model.get_latent_representation())


def map_scarches(query, reference, fitted):
    """Train what the query adds to the network; the reference's latents stay as they are."""
    import scvi

    scvi.model.SCVI.prepare_query_anndata(query, fitted.model)
    model = scvi.model.SCVI.load_query_data(query, fitted.model)
    model.train(max_epochs=200, plan_kwargs={"weight_decay": 0.0}, enable_progress_bar=False)
    return Mapped(model.get_latent_representation())


def fit_bioren(reference, seed):
    import bioren

    model = bioren.RenormAutoencoder(rng=seed).fit(reference, "batch")
    model.learn_labels(reference, "cell_type")
    return Reference(model, model.embed(reference))


def map_bioren(query, reference, fitted):
    import bioren

    bioren.tl.map_query(query, fitted.model)
    return Mapped(
        query.obsm["X_bioren"],
        query.obs["bioren_mapping_score"].to_numpy(dtype=float),
        query.obs["bioren_cell_type"].to_numpy(dtype=str),
    )


METHODS = {
    "pca": Method(fit_pca, map_pca, "scikit-learn", ("sklearn.decomposition",), random=False),
    "symphony": Method(fit_symphony, map_symphony, "symphonypy", ("scanpy", "symphonypy")),
    "scarches": Method(
        fit_scarches, map_scarches, "scvi-tools", ("scvi",), slow=True, scores=False
    ),
    "bioren": Method(
        fit_bioren, map_bioren, "bioren", ("bioren.model.autoencoder", "bioren.tools")
    ),
}
