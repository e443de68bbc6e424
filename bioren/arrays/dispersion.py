"""Genes that vary more than others of their level, from moments alone.

The normalized dispersion of Satija et al. 2015, *Nature Biotechnology* 33:495: the variance of
expression by its mean, on a log scale, against that of genes with a similar mean.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bioren.arrays.moments import Moments
from bioren.arrays.shapes import BoolPerGene, PerGene

__all__ = ["most_dispersed"]

#: Genes are compared with those of their bin: so many bins of equal width, by log of the mean.
BINS = 20

#: Genes of a bin of two lie equally far from its mean: their order decides, not rounding errors.
DECIMALS = 5


def most_dispersed(moments: Moments, n_genes: int) -> BoolPerGene:
    """Return which genes are dispersed in most samples; among equals, those that are so the most.

    Parameters
    ----------
    moments
        Groups ``(samples,)``: expression that is not on a log scale.
    n_genes
        How many genes are chosen in each sample, and of all.
    """
    by_sample = np.stack([_dispersion(moments[sample]) for sample in range(len(moments.count))])
    chosen = np.zeros(by_sample.shape, dtype=bool)
    for sample, dispersion in enumerate(by_sample):
        known = np.sort(dispersion[(moments.mean[sample] > 0) & ~np.isnan(dispersion)])
        if len(known):
            least = known[-min(n_genes, len(known))]
            chosen[sample] = (dispersion >= least) & (moments.mean[sample] > 0)
    known = ~np.isnan(by_sample)
    total = np.where(known, by_sample, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    total[~known.any(axis=0)] = -np.inf
    order = np.lexsort([-total.round(DECIMALS), -chosen.sum(axis=0)])
    return np.isin(np.arange(len(order)), order[:n_genes])


def _dispersion(moments: Moments) -> PerGene:
    """Return the normalized dispersion of one sample; NaN for a constant, 0 for an absent gene."""
    found = np.zeros(len(moments.mean))
    there = moments.mean > 0
    mean, variance = moments.mean[there], moments.var(ddof=1)[there]
    if not there.any():
        return found
    log = np.log(np.where(variance > 0, variance, np.nan) / mean)
    table = pd.DataFrame({"log": log, "bin": pd.cut(np.log1p(mean), BINS)})
    of_bin = table.groupby("bin", observed=True)["log"]
    center, spread = (of_bin.transform(name).to_numpy() for name in ("mean", "std"))
    alone, alike = np.isnan(spread), spread == 0
    within = (log - center) / np.where(alone | alike, np.nan, spread)
    found[there] = np.where(alone, log / center, within).round(DECIMALS)
    return found
