"""Simulated expression whose batch effect is known; imports nothing of the package."""

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.neighbors import NearestNeighbors


def simulate(sizes=(40, 40, 40), *, n_genes=20, composition=None, shift=0.5, log_scale=0.1, seed=0):
    """Return log-expression of samples "a", "b", ... with a known effect per sample and gene.

    Cells of a type are normal around the type's profile.  Then a sample's values become
    ``mean + scale * (x - mean) + shift`` per gene; scale and shift are 1 and 0 on average.

    sizes: cells per sample.  composition: shares of the types, samples x types; None: even.
    shift, log_scale: standard deviations of what is planted; ``uns["planted_shift"]`` keeps it.
    """
    rng = np.random.default_rng(seed)
    n_samples = len(sizes)
    composition = np.full((n_samples, 3), 1 / 3) if composition is None else np.array(composition)
    n_types = composition.shape[1]
    profiles = rng.normal(3, 1, (n_types, n_genes))
    planted_shift = _centered(rng.normal(0, shift, (n_samples, n_genes)))
    planted_scale = np.exp(_centered(rng.normal(0, log_scale, (n_samples, n_genes))))

    sample = np.repeat(np.arange(n_samples), sizes)
    kind = np.concatenate(
        [
            rng.permutation(np.arange(n) * n_types // n if even else rng.choice(n_types, n, p=p))
            for n, p, even in zip(sizes, composition, _even(composition), strict=True)
        ]
    )
    order = rng.permutation(len(sample))
    sample, kind = sample[order], kind[order]
    x = profiles[kind] + rng.normal(0, 0.5, (len(sample), n_genes))
    mean = profiles.mean(axis=0)
    x = mean + planted_scale[sample] * (x - mean) + planted_shift[sample]
    obs = pd.DataFrame(
        {
            "sample": pd.Categorical.from_codes(sample, list("abcdefgh")[:n_samples]),
            "type": pd.Categorical.from_codes(kind, [f"type{k}" for k in range(n_types)]),
        },
        index=[f"cell{i}" for i in range(len(sample))],
    )
    var = pd.DataFrame(index=[f"gene{g}" for g in range(n_genes)])
    return AnnData(x.astype(np.float32), obs=obs, var=var, uns={"planted_shift": planted_shift})


def sparse_like(adata):
    """Return a copy in which about half of the values are 0, none negative, as in real counts."""
    adata = adata.copy()
    adata.X = np.where(adata.X > 3, adata.X - 2, 0).astype(np.float32)
    return adata


def _centered(values):
    return values - values.mean(axis=0)


def _even(composition):
    return np.ptp(composition, axis=1) < 1e-9


def neighbors(z, k=15):
    """Return the positions of each row's k nearest other rows."""
    return NearestNeighbors(n_neighbors=k).fit(z).kneighbors(return_distance=False)


def mixing(z, samples, k=15):
    """Return the mean share of a cell's neighbors that come from other samples."""
    codes = pd.factorize(samples)[0]
    return (codes[neighbors(z, k)] != codes[:, None]).mean()


def purity(z, types, k=15):
    """Return the mean share of a cell's neighbors that are of its own type."""
    codes = pd.factorize(types)[0]
    return (codes[neighbors(z, k)] == codes[:, None]).mean()
