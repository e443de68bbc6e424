"""Every method as a function of prepared cells and a seed, with the settings its authors propose.

It returns an embedding, cells x dimensions, or a `Graph` of neighbors where the method makes
nothing else.  What it may read of `adata` is told in data.py; it may change `adata`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd

from data import is_embedding

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix


class Graph(NamedTuple):
    """Neighbors of each cell, cells x cells, where a method gives no embedding."""

    distances: csr_matrix
    connectivities: csr_matrix


class Method(NamedTuple):
    """A function, and what has to be known to run it.

    Attributes
    ----------
    run
        Function of the prepared cells and a seed.
    package
        Distribution that it comes from; its version is part of a stored result.
    modules
        What is imported before the clock starts.
    random
        Whether the seed makes a difference.
    counts
        Whether it reads layers["counts"].
    embedding
        Whether it can start from components alone, without genes.
    slow
        Whether it takes minutes, so that fewer seeds may have to do.
    """

    run: Callable[[AnnData, int], np.ndarray | Graph]
    package: str
    modules: tuple[str, ...]
    random: bool = True
    counts: bool = False
    embedding: bool = False
    slow: bool = False

    @property
    def ours(self) -> bool:
        return self.package == "bioren"


def pca(adata, seed):
    """Return the components that all start from: no integration."""
    return adata.obsm["X_pca"]


def harmony(adata, seed, *, n_components=50, **options):
    """Return what harmonypy makes of the components; its version 2 is Harmony2 by default."""
    import harmonypy

    found = harmonypy.run_harmony(
        adata.obsm["X_pca"][:, :n_components],
        adata.obs,
        "batch",
        verbose=False,
        random_state=seed,
        **options,
    )
    z = np.asarray(found.Z_corr)
    return z if len(z) == adata.n_obs else z.T  # harmonypy 2 turned the axes round


def harmony_20(adata, seed):
    """Return Harmony on the first 20 components: what later ones add is noise in some sets."""
    return harmony(adata, seed, n_components=20)


def harmony_ridge(adata, seed):
    """Return Harmony with the fixed ridge penalty of its first version, not one per cluster."""
    return harmony(adata, seed, lamb=1)


def harmony_of_scanpy(adata, seed, *, flavor="harmony2"):
    """Return scanpy's own Harmony of the components; in scanpy from 1.13 on."""
    import scanpy as sc

    sc.pp.harmony_integrate(adata, "batch", flavor=flavor, rng=seed)
    return adata.obsm["X_pca_harmony"]


def harmony_1_of_scanpy(adata, seed):
    """Return scanpy's own Harmony as it was first published."""
    return harmony_of_scanpy(adata, seed, flavor="harmony1")


def scanorama(adata, seed, *, dimred=100):
    """Return Scanorama's embedding, of 100 dimensions as it is set."""
    import scanorama

    names = adata.obs["batch"].cat.categories
    parts = [adata[adata.obs["batch"] == name].copy() for name in names]
    scanorama.integrate_scanpy(parts, seed=seed, dimred=dimred, verbose=False)
    z = pd.concat([pd.DataFrame(p.obsm["X_scanorama"], index=p.obs_names) for p in parts])
    return z.loc[adata.obs_names].to_numpy()


def scanorama_50(adata, seed):
    """Return Scanorama's embedding of as many dimensions as the others start from."""
    return scanorama(adata, seed, dimred=50)


def combat(adata, seed):
    """Return the components of corrected expression; scanpy's ComBat."""
    import scanpy as sc

    adata.X = adata.X.toarray()
    sc.pp.combat(adata, "batch")
    sc.pp.pca(adata, n_comps=adata.obsm["X_pca"].shape[1])
    return adata.obsm["X_pca"]


def bbknn(adata, seed):
    """Return a graph: BBKNN changes who is a neighbor, and no coordinates."""
    import bbknn

    bbknn.bbknn(adata, batch_key="batch", n_pcs=adata.obsm["X_pca"].shape[1])
    return Graph(adata.obsp["distances"].tocsr(), adata.obsp["connectivities"].tocsr())


def scvi(adata, seed):
    """Return scVI's latents from raw counts: 2 layers, 30 latents, as in its own tutorials."""
    import scvi

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = scvi.model.SCVI(adata, n_layers=2, n_latent=30, gene_likelihood="nb")
    model.train(enable_progress_bar=False)
    return model.get_latent_representation()


def drvi(adata, seed):
    """Return DRVI's latents from raw counts, as it is set; of scvi-tools 1.5 or newer."""
    import scvi

    scvi.settings.seed = seed
    scvi.external.DRVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = scvi.external.DRVI(adata)
    model.train(enable_progress_bar=False)
    return model.get_latent_representation()


def scalex(adata, seed):
    """Return SCALEX's latents with its default settings, from log-expression.

    Its own preparation is the one of data.py, but that it drops cells with fewer than 600 genes
    and rare genes; all cells have to be scored, so that is left out and its scaling to [0, 1] is
    kept (processed=True).  Cells are loaded without worker processes, which changes the time
    alone: with few cells most of it went into starting four workers in each epoch.
    """
    import tempfile

    from scalex import SCALEX

    np.Inf = np.inf  # noqa: NPY201  SCALEX 1.0.4 uses the name that numpy 2 dropped
    with tempfile.TemporaryDirectory() as folder:  # its early stopping needs a checkpoint
        found = SCALEX(
            adata, processed=True, ignore_umap=True, num_workers=0, seed=seed, outdir=folder
        )
    return found.obsm["latent"]


def bioren(adata, seed):
    """Return the embedding from genes; where there are none, the bridge per state on components."""
    import bioren

    if is_embedding(adata):
        return bioren_states(adata, seed)
    bioren.tl.integrate(adata, "batch", rng=seed, progress=False)
    return adata.obsm["X_bioren"]


def condo_told_types(adata, seed):
    """Return components after ConDo, which needs to know all cell types; the largest batch first.

    Batches are merged one after the other, by the linear adapter that its authors name first.
    """
    from condo import ConDoAdapterKLD
    from condo.batch_integration import agglomerative_integrate

    batch = adata.obs["batch"].to_numpy(str)
    found = agglomerative_integrate(
        adata.obsm["X_pca"].astype(float),
        batch,
        adata.obs["cell_type"].to_numpy(str),
        batch_score=pd.Series(batch).value_counts().astype(float).to_dict(),
        adapter_factory=ConDoAdapterKLD,
        verbose=False,
    )
    return found.Y_out


def bioren_told_types(adata, seed):
    """Return the embedding that is made with all cell types known."""
    import bioren

    bioren.tl.integrate(adata, "batch", labels_key="cell_type", rng=seed, progress=False)
    return adata.obsm["X_bioren"]


def bioren_trained(adata, seed):
    """Return the embedding where a network is trained, as long as held-out cells gain."""
    import bioren
    from bioren.network.training import TrainingOptions

    options = TrainingOptions(probe=0)
    bioren.tl.integrate(adata, "batch", rng=seed, training=options, progress=False)
    return adata.obsm["X_bioren"]


def bioren_genes(adata, seed):
    """Return the components of bridged expression."""
    import scanpy as sc

    import bioren

    bioren.pp.bridge(adata, "batch", rng=seed)
    adata.X = adata.layers["bioren"]
    sc.pp.pca(adata, n_comps=30)
    return adata.obsm["X_pca"]


def bioren_states(adata, seed):
    """Return the components that all start from, after the bridge per cell state."""
    import bioren

    bioren.tl.integrate(adata, "batch", use_rep="X_pca", rng=seed)
    return adata.obsm["X_bioren"]


def bioren_without_denoising(adata, seed):
    """Return the embedding with each cell where it was measured."""

    def nothing_is_noise(*_, n_components, **__):
        return np.ones(n_components)

    with patch("bioren.model.fitting.reliability", nothing_is_noise):
        return bioren(adata, seed)


def bioren_without_depth(adata, seed):
    """Return the embedding from which nothing is regressed out."""
    with patch("bioren.model.fitting.network_facts", lambda x, facts: facts):
        return bioren(adata, seed)


def bioren_without_standardization(adata, seed):
    """Return the embedding where plain moments are matched, whatever the samples' composition."""
    from bioren.effects.alignment import align

    def plain(*given, **options):
        return align(*given, **options | {"iterations": 0})

    with patch("bioren.model.fitting.align", plain):
        return bioren(adata, seed)


def bioren_with_types_aligned(adata, seed):
    """Return the embedding after each type of each batch is shifted to the type's mean.

    It is told the cell types: what its batch score lacks to 1 is composition, not an effect.
    """
    z = bioren(adata, seed)
    types = adata.obs["cell_type"].cat.codes.to_numpy()
    batches = adata.obs["batch"].cat.codes.to_numpy()
    for kind in np.unique(types):
        center = z[types == kind].mean(axis=0)
        for batch in np.unique(batches[types == kind]):
            cells = (types == kind) & (batches == batch)
            z[cells] += center - z[cells].mean(axis=0)
    return z


METHODS = {
    "pca": Method(pca, "scanpy", (), random=False, embedding=True),
    "harmony": Method(harmony, "harmonypy", ("harmonypy",), embedding=True),
    "harmony 20": Method(harmony_20, "harmonypy", ("harmonypy",), embedding=True),
    "harmony ridge": Method(harmony_ridge, "harmonypy", ("harmonypy",), embedding=True),
    "scanorama": Method(scanorama, "scanorama", ("scanorama",)),
    "scanorama 50": Method(scanorama_50, "scanorama", ("scanorama",)),
    "combat": Method(combat, "scanpy", ("scanpy",), random=False),
    "bbknn": Method(bbknn, "bbknn", ("bbknn",), random=False, embedding=True),
    "scvi": Method(scvi, "scvi-tools", ("scvi",), counts=True, slow=True),
    "drvi": Method(drvi, "scvi-tools", ("scvi", "scvi.external"), counts=True, slow=True),
    "scalex": Method(scalex, "scalex", ("scalex.data", "scalex.net.vae", "scalex.plot"), slow=True),
    "bioren": Method(bioren, "bioren", ("bioren.tools",), embedding=True),
    "harmony 2, scanpy": Method(harmony_of_scanpy, "scanpy", ("scanpy",), embedding=True),
    "harmony 1, scanpy": Method(harmony_1_of_scanpy, "scanpy", ("scanpy",), embedding=True),
    "condo, told types": Method(condo_told_types, "condo", ("condo",), random=False),
    "bioren, told types": Method(bioren_told_types, "bioren", ("bioren.tools",)),
    "bioren, trained": Method(bioren_trained, "bioren", ("bioren.tools",)),
    "bioren, genes alone": Method(bioren_genes, "bioren", ("bioren.preprocessing", "scanpy")),
    "bioren, states alone": Method(bioren_states, "bioren", ("bioren.tools",)),
    "bioren, no denoising": Method(bioren_without_denoising, "bioren", ("bioren.tools",)),
    "bioren, no depth": Method(bioren_without_depth, "bioren", ("bioren.tools",)),
    "bioren, types aligned": Method(bioren_with_types_aligned, "bioren", ("bioren.tools",)),
    "bioren, plain moments": Method(bioren_without_standardization, "bioren", ("bioren.tools",)),
}
#: What `make benchmarks` compares; the others are parts of bioren, or are told the cell types, or
#: need newer packages than the rest (DRVI, scanpy's own Harmony).
COMPARED = [name for name in METHODS if "," not in name and name != "drvi"]
