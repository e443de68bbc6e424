"""Cells of a known world, a model fitted on some of them, and a digest of all that it holds."""

import hashlib

import numpy as np
import pandas as pd
import torch
from anndata import AnnData, concat

import bioren
from bioren.network.training import TrainingOptions

N_GENES = 40
N_TYPES = 5  # the reference lacks the last
PROFILES = np.random.default_rng(7).normal(3, 1, (N_TYPES, N_GENES))
SAMPLES = {"a": (80, 60, 40, 20), "b": (30, 80, 70, 20), "c": (60, 50, 60, 30)}


def draw(counts, *, sample="query", shift=0.0, scale=1.0, seed=0):
    """Return log-expression of so many cells of each type, in random order.

    Values x become ``3 + scale * (x - 3) + shift``; scale and shift are numbers or one per gene.
    """
    rng = np.random.default_rng(seed)
    kind = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    x = PROFILES[kind] + rng.normal(0, 0.5, (len(kind), N_GENES))
    obs = pd.DataFrame(
        {
            "sample": pd.Categorical([sample] * len(kind)),
            "type": pd.Categorical.from_codes(kind, [f"type{k}" for k in range(N_TYPES)]),
        },
        index=[f"{sample}{i}" for i in range(len(kind))],
    )
    var = pd.DataFrame(index=[f"gene{g}" for g in range(N_GENES)])
    return AnnData((3 + scale * (x - 3) + shift).astype(np.float32), obs=obs, var=var)


def effect(seed, size=0.4):
    """Return a shift and a scale per gene."""
    rng = np.random.default_rng(seed)
    return {"shift": rng.normal(0, size, N_GENES), "scale": np.exp(rng.normal(0, 0.1, N_GENES))}


def reference_cells():
    """Return the cells of three samples, each with an effect of its own."""
    parts = [
        draw(counts, sample=name, seed=i, **effect(100 + i, 0.3))
        for i, (name, counts) in enumerate(SAMPLES.items())
    ]
    return concat(parts)


def fitted(
    adata, batch_key="sample", *, covariates=None, labels_key=None, reference=None, **options
):
    """Return a model whose network stays at the principal components."""
    model = bioren.RenormAutoencoder(
        10, training=TrainingOptions(max_epochs=0, progress=False), **options
    )
    return model.fit(
        adata, batch_key, covariates=covariates, labels_key=labels_key, reference=reference
    )


def digest(thing):
    """Return a digest of an object and of all that it refers to."""
    found = hashlib.sha256()

    def add(value):
        found.update(type(value).__name__.encode())
        if isinstance(value, torch.nn.Module):
            add(value.state_dict())
        elif isinstance(value, torch.Tensor):
            add(value.detach().numpy())
        elif isinstance(value, np.ndarray) and value.dtype != object:
            found.update(value.tobytes())
        elif isinstance(value, pd.DataFrame | pd.Series | pd.Index):
            add(value.to_numpy().tolist())
        elif isinstance(value, dict):
            add(list(value.items()))
        elif isinstance(value, list | tuple):
            for one in value:
                add(one)
        elif slots := getattr(value, "__slots__", None):
            add([getattr(value, name) for name in slots])
        elif hasattr(value, "__dict__"):
            # Cached properties may appear; they follow from the rest.
            fields = getattr(value, "__dataclass_fields__", None) or vars(value)
            add({name: getattr(value, name) for name in fields})
        else:
            found.update(repr(value).encode())

    add(thing)
    return found.hexdigest()
