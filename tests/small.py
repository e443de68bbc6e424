"""A small model that knows everything a model can know, and cells to map onto it."""

import numpy as np
from simulation import simulate

import bioren
from bioren.network.training import TrainingOptions


def described(sizes, **options):
    """Return simulated cells with a covariate, labels of some cells, and marked genes."""
    adata = simulate(sizes, n_genes=20, seed=1, **options)
    adata.var["highly_variable"] = np.arange(adata.n_vars) % 4 > 0
    rng = np.random.default_rng(0)
    adata.obs["depth"] = rng.normal(size=adata.n_obs)
    adata.obs["known"] = adata.obs["type"].where(rng.random(adata.n_obs) < 0.8)
    return adata


def query():
    """Return two samples that lack some genes; the order of genes is another."""
    adata = described((15, 10))[:, ::-1][:, :17].copy()
    adata.obs["sample"] = adata.obs["sample"].cat.rename_categories(["x", "y"])
    return adata


def fit(adata, batch_key="sample", *, settings=None, learn=True, epochs=1, **options):
    """Return a model of few dimensions."""
    training = TrainingOptions(max_epochs=epochs, progress=False)
    model = bioren.RenormAutoencoder(4, 8, training=training, **(settings or {}))
    model.fit(adata, batch_key, **options)
    return model.learn_labels(adata, "known") if learn else model
