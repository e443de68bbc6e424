"""How much of a cell's coordinates in the embedding is the cell, and how much is noise.

A cell is measured by few molecules.  Test theory has the same problem, a person's ability seen
through a few answers, and its solution is used here: the *reliability* of a score is the share of
its variance that would come back if it were measured again, by other items (Cronbach 1951,
*Psychometrika* 16:297), and the true scores of a group vary about its mean by as much less.  Here
the items are genes, the scores are principal components, and the groups are cell states, so that
states keep their centroids and the noise around them shrinks.  Where a sample's shift within a
state is sample-specific and no batch effect, its cells are a group of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from bioren.arrays.blocks import Block
from bioren.arrays.components import Projection
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import (
    CellsByDims,
    CellsByStates,
    PerDim,
    PerGene,
    SampleCodes,
    SamplesByGenes,
    StatesByDims,
)
from bioren.bridge import AffineBridge

__all__ = ["Denoiser", "reliability"]

#: Reliability is found on at most so many cells.
MAX_CELLS = 10_000


@dataclass(frozen=True)
class Denoiser:
    """Draws each cell towards the mean of its states, so that no more than the noise goes.

    The best guess of each single place is the mean plus the reliability times the deviation from
    it (Kelley 1927), but such guesses lie closer together than the places do: states would end up
    as islands.  Deviations are therefore multiplied by the root of the reliability, which leaves
    within states the variance that is more than noise (constrained empirical Bayes: Louis 1984,
    *JASA* 79:393; Ghosh 1992, *JASA* 87:533).

    Attributes
    ----------
    centers
        Centroid of each state's cells but for what is sample-specific, shape ``(states, dims)``.
    reliability
        Share of the variance within states that is not noise, in [0, 1], shape ``(dims,)``.
    """

    centers: StatesByDims
    reliability: PerDim

    @classmethod
    def fit(
        cls, z: CellsByDims, share: CellsByStates, specific: CellsByDims, *, reliability: PerDim
    ) -> Self:
        """Find the states' centroids.

        Parameters
        ----------
        z
            Corrected embedding, shape ``(cells, dims)``.
        share
            Each cell's share in each state, shape ``(cells, states)``, rows sum to 1.
        specific
            How far each cell lies from its states for no batch effect, of the shape of `z`.
        reliability
            Of each dimension.
        """
        weight = np.maximum(share.sum(axis=0, dtype=np.float64), 1e-12)
        return cls((share.T @ (z - specific)) / weight[:, None], reliability)

    def denoised(self, z: CellsByDims, share: CellsByStates, specific: CellsByDims) -> CellsByDims:
        """Return coordinates whose variance within states is free of noise; as `z` in shape, dtype.

        Each row by itself.  Parameters as for `fit`.
        """
        center = share @ self.centers + specific
        return (center + np.sqrt(self.reliability) * (z - center)).astype(z.dtype)


def reliability(
    x: Block,
    codes: SampleCodes,
    share: CellsByStates,
    *,
    bridges: AffineBridge,
    center: PerGene,
    n_components: int,
    rng: np.random.Generator,
) -> PerDim:
    """Return the reliability of principal components within samples and states.

    Cronbach's alpha: noise is independent between genes, so that of a component's variance only
    the part that genes have in common is more than noise.  Components are found on one half of
    the cells and judged on the other, as they would fit the noise of their own cells; the first
    of either half stand for the first of all, and so on.

    Parameters
    ----------
    x
        Expression in memory, shape ``(cells, genes)``.
    codes
        Sample of each cell.
    share
        Each cell's share in each state, shape ``(cells, states)``.
    bridges
        One per sample: components are those of bridged expression.
    center
        Origin of the components, shape ``(genes,)``.
    n_components
        Number of components.
    rng
        Chooses the halves, and the cells where they are too many.

    Returns
    -------
    numpy.ndarray
        In [0, 1], shape ``(n_components,)``; 1 where the cells are too few to tell.
    """
    cells = rng.permutation(len(codes))[:MAX_CELLS]
    first, second = (np.sort(half) for half in np.array_split(cells, 2))
    if len(second) <= n_components:
        return np.ones(n_components)
    found = []
    for fitted, judged in ((first, second), (second, first)):
        parts = Projection.fit(
            x[fitted], codes[fitted], bridges, center=center, n_components=n_components, rng=rng
        )
        z = parts.apply(x[judged], codes[judged], bridges)
        genes = _variance_within(x[judged], codes[judged], share[judged], scale=bridges.scale)
        scores = _variance_within(z, codes[judged], share[judged])
        alone = np.square(parts.loadings).T @ genes
        found.append(1 - np.divide(alone, scores, out=np.ones_like(alone), where=scores > 0))
    return np.mean(found, axis=0).clip(0, 1)


def _variance_within(
    x: Block, codes: SampleCodes, share: CellsByStates, *, scale: SamplesByGenes | None = None
) -> PerGene:
    """Return each column's variance within samples and states, after `scale` per sample."""
    total = np.zeros(x.shape[1])
    for sample in np.unique(codes):  # one at a time: samples x states x genes may be a lot
        cells = np.flatnonzero(codes == sample)
        part = Moments.by_group(x[cells], np.zeros(len(cells), dtype=np.intp), 1, share[cells])
        spread = part.m2[0].sum(axis=0)
        total += spread if scale is None else spread * np.square(scale[sample])
    return total / len(codes)
