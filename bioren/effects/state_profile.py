"""A reference population by cell state, and the moments that it is made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bioren.arrays.groups import TINY
from bioren.arrays.lazy import columns_of
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import (
    BoolPerSample,
    ByGenes,
    CellsByStates,
    OfStatesOrGenes,
    PerSample,
    Positions,
    SampleCodes,
    SamplesByStates,
    StatesByGenes,
)
from bioren.effects import constants

__all__ = [
    "TABLE_ENTRIES",
    "ReferenceWeights",
    "StateProfile",
    "moments_by_state",
    "over_states",
    "profile_of",
]

#: Entries of a table samples x states x genes: 256 MiB in double precision.
TABLE_ENTRIES = 2**25


class StateProfile(NamedTuple):
    """A reference population, state by state.

    Attributes
    ----------
    composition
        Share of each state, every sample weighing the same, shape ``(states,)``; of each gene by
        itself, ``(states, genes)``, where values are missing.
    by_state
        Groups ``(states,)``: the reference's cells in each state, mean and variance within.
    """

    composition: OfStatesOrGenes
    by_state: Moments

    def whole(self) -> Moments:
        """Return the moments of the whole population: no groups, weighed by its composition."""
        by_gene = self.by_state.incomplete
        mean = over_states(self.composition, self.by_state.mean, by_gene=by_gene)
        between = np.square(self.by_state.mean - mean)
        spread = over_states(self.composition, self.by_state.var() + between, by_gene=by_gene)
        n = self.by_state.count.sum(axis=0)
        return Moments(n, mean, n * spread)

    def of_genes(self, index: Positions | slice) -> StateProfile:
        """Return the profile of some genes."""
        by_gene = self.by_state.incomplete
        composition = self.composition[:, index] if by_gene else self.composition
        return StateProfile(composition, self.by_state.of_genes(index))

    def of_states(self, index: Positions) -> StateProfile:
        """Return some of the states, as if they were the whole population."""
        composition = self.composition[index]
        whole = np.maximum(composition.sum(axis=0), TINY)
        return StateProfile(composition / whole, self.by_state[index])


class ReferenceWeights(NamedTuple):
    """What each row of moments by sample and state stands for.

    Attributes
    ----------
    weight
        Of the row's mean in the level of each state, shape ``(samples, states)``.
    composition
        Share of each state in it, shape ``(samples, states)``.
    samples
        Number of samples that it stands for: one, unless several were pooled.
    """

    weight: SamplesByStates
    composition: SamplesByStates
    samples: PerSample

    @classmethod
    def of(cls, count: SamplesByStates) -> ReferenceWeights:
        """Return what single samples stand for, from their cells by state."""
        composition = count / np.maximum(count.sum(axis=1, keepdims=True), TINY)
        return cls(count / (count + constants.PRIOR_CELLS), composition, np.ones(len(count)))


def over_states(part: np.ndarray, table: StatesByGenes, *, by_gene: bool) -> ByGenes:
    """Sum a table over its states.

    Parameters
    ----------
    part
        Weights, shape ``(*samples, states)``, or with an axis of genes at the end.
    table
        Shape ``(states, genes)``.
    by_gene
        Whether the weights have the axis of genes.
    """
    return np.einsum("...kg,kg->...g", part, table) if by_gene else part @ table


def profile_of(
    bridged: Moments, in_reference: BoolPerSample, weights: ReferenceWeights | None = None
) -> StateProfile:
    """Return the reference by state.

    Parameters
    ----------
    bridged
        Groups ``(samples, states)``, on the reference's scale.
    in_reference
        Which samples make it up, boolean of shape ``(samples,)``.
    weights
        See `ReferenceWeights`; None: each row is one sample.
    """
    weights = weights or ReferenceWeights.of(bridged.count)
    weight, composition, samples = (of[in_reference] for of in weights)
    there = bridged[in_reference]
    part = weight / np.maximum(weight.sum(axis=0), TINY)  # samples x states
    level = np.einsum("sk,skg->kg", part, there.mean)
    by_state = Moments(there.count.sum(axis=0), level, there.m2.sum(axis=0))
    return StateProfile(np.average(composition, axis=0, weights=samples), by_state)


def moments_by_state(
    x: Any, codes: SampleCodes, n_samples: int, *, share: CellsByStates
) -> Moments:
    """Return moments by sample and state in single precision, a few genes at a time.

    Parameters
    ----------
    x
        Log-expression, shape ``(cells, genes)``, any kind that `row_blocks` reads.
    codes, n_samples
        Sample of each cell, and their number.
    share
        Each cell's share in each state, shape ``(cells, states)``.
    """
    groups = n_samples, share.shape[1]
    n_genes = x.shape[1]
    mean, m2 = (np.empty((*groups, n_genes), dtype=np.float32) for _ in range(2))
    count = np.zeros(groups)
    step = max(1, TABLE_ENTRIES // (groups[0] * groups[1]))
    for start in range(0, n_genes, step):
        genes = slice(start, start + step)
        some = x if step >= n_genes else columns_of(x, genes)
        part = Moments.by_group(some, codes, n_samples, share)
        count, mean[..., genes], m2[..., genes] = part.count, part.mean, part.m2
    return Moments(count.astype(np.float32), mean, m2)
