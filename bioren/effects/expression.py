"""Corrected expression: the sample's effect on each gene, state by state where it differs.

The standardized bridge moves a gene by one amount in all cells of a sample.  A gene that some cell
types do not express at all has no effect there, and moving it would make a difference out of
nothing, one that tests between samples find with certainty as there is no noise.  What is left
between samples within a state after the bridge is therefore removed too, as far as it is certain,
and unless the embedding tells that it is another cell type: see `bioren.effects.shifts.Shifts`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from bioren.arrays.apply import result_dtype, scale_rows
from bioren.arrays.blocks import Block, to_dense
from bioren.arrays.groups import TINY, mixed
from bioren.arrays.lazy import by_rows
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import (
    AnyCellsByGenes,
    BoolPerSample,
    CellsByStates,
    PerGene,
    PerState,
    Positions,
    SampleCodes,
    SamplesByGenes,
    SamplesByStates,
    SamplesByStatesByGenes,
    StatesByGenes,
)
from bioren.bridge import AffineBridge
from bioren.effects import constants
from bioren.effects.shifts import squared_errors
from bioren.effects.state_profile import TABLE_ENTRIES, StateProfile

__all__ = ["ExpressionBridge"]


@dataclass(frozen=True)
class ExpressionBridge:
    """The map ``x -> scale * x + shift`` with a shift per sample, state and gene.

    Attributes
    ----------
    scale
        Shape ``(samples, genes)``.
    shift
        Shape ``(samples, states, genes)``, float32; a cell gets the mean by its shares.
    """

    scale: SamplesByGenes
    shift: SamplesByStatesByGenes

    @classmethod
    def fit(
        cls,
        by_state: Moments,
        full: AffineBridge,
        *,
        bridges: AffineBridge,
        inlier_weight: SamplesByStates,
        in_reference: BoolPerSample | None = None,
        onto: StateProfile | None = None,
        strength: float = 1.0,
        most: PerGene | float = math.inf,
    ) -> Self:
        """Find what differs between samples within states.

        Parameters
        ----------
        by_state
            Groups ``(samples, states)``: log-expression as it was measured.
        full
            The bridges that remove all of the samples' effects, shape ``(samples, genes)``.
        bridges
            Those that remove what is to be removed; their scale is used.
        inlier_weight
            How far each sample's shift within a state counts as a batch effect, in [0, 1], shape
            ``(samples, states)``.
        in_reference
            Which samples make up the reference, boolean of shape ``(samples,)``; None: all.
        onto
            A reference of which no sample is part, and that stays as it is.
        strength
            Share of each move that is carried out, in [0, 1].
        most
            No gene is moved further in any state, shape ``(genes,)``.
        """
        n_samples, n_states, n_genes = by_state.mean.shape
        most = np.broadcast_to(most, n_genes)
        in_reference = np.ones(n_samples, dtype=bool) if in_reference is None else in_reference
        shift = np.empty((n_samples, n_states, n_genes), dtype=np.float32)
        step = max(1, TABLE_ENTRIES // (n_samples * n_states))
        for start in range(0, n_genes, step):
            genes = slice(start, start + step)
            some = by_state.of_genes(genes)
            scale, level = full.scale[:, None, genes], full.shift[:, None, genes]
            bridged = some.moved(scale, level)
            if onto is None:
                left, center = _left_between_samples(bridged, inlier_weight, in_reference)
            else:
                left, center = _left_of_reference(bridged, onto.of_genes(genes))
            left *= inlier_weight[..., None]
            # A sample without cells in a state is taken to be there as its bridge says.
            n = some.count[..., None]
            mean = (n * some.mean + (center - level) / scale) / (n + 1)
            move = (scale - 1) * mean + level - left
            move = (strength * move).clip(-most[genes], most[genes])
            shift[:, :, genes] = move + (1 - bridges.scale[:, None, genes]) * mean
        return cls(bridges.scale, shift)

    @classmethod
    def stacked(cls, parts: Sequence[Self]) -> Self:
        """Return maps of the same states and genes as one, sample below sample."""
        scales, shifts = ([getattr(part, name) for part in parts] for name in ("scale", "shift"))
        return cls(np.concatenate(scales), np.concatenate(shifts))

    def of_genes(self, columns: Positions) -> Self:
        """Return the map of some genes."""
        if np.array_equal(columns, np.arange(self.scale.shape[1])):
            return self
        return type(self)(self.scale[:, columns], self.shift[:, :, columns])

    def apply(self, x: Any, codes: SampleCodes, share: CellsByStates) -> AnyCellsByGenes:
        """Return corrected expression, dense, shape ``(cells, genes)``; a dask array if `x` is one.

        Parameters
        ----------
        x
            Shape ``(cells, genes)``, any kind that `row_blocks` reads.
        codes, share
            Sample and states of each cell, as in `fit`.
        """

        def corrected(block: Block, samples: SampleCodes, part: CellsByStates) -> np.ndarray:
            scaled = to_dense(scale_rows(block, self.scale, samples))
            return scaled + mixed(part, samples, self.shift)

        like = np.empty((0, 0), dtype=result_dtype(x))
        return by_rows(corrected, x, codes, share, n_columns=x.shape[1], like=like)


def _left_between_samples(
    bridged: Moments, inlier_weight: SamplesByStates, in_reference: BoolPerSample
) -> tuple[SamplesByStatesByGenes, StatesByGenes]:
    """Return how far samples still lie from the reference in each state, and where that lies."""
    count = bridged.count
    there = count * in_reference[:, None]
    # Where nothing is an inlier, the center is the middle of all.
    part = there / (count + constants.PRIOR_CELLS) * np.maximum(inlier_weight, 1e-9)
    part = part / np.maximum(part.sum(axis=0), TINY)  # samples x states
    center = np.einsum("sk,skg->kg", part, bridged.mean)
    # Of a state's variance all samples tell together: a sample's single cell has none.
    within = bridged.m2.sum(axis=0) / np.maximum(count.sum(axis=0), TINY)[:, None]
    error2 = squared_errors(part, count)[..., None] * within
    return _certain(bridged.mean - center, error2, count, there=there.sum(axis=0)), center


def _left_of_reference(
    bridged: Moments, onto: StateProfile
) -> tuple[SamplesByStatesByGenes, StatesByGenes]:
    """Return the same for a reference that stays as it is."""
    known = onto.by_state
    squared = 1 / np.maximum(bridged.count, 1) + 1 / np.maximum(known.count, 1)
    error2 = squared[..., None] * known.var()
    return _certain(bridged.mean - known.mean, error2, bridged.count, there=known.count), known.mean


def _certain(
    left: SamplesByStatesByGenes,
    error2: SamplesByStatesByGenes,
    count: SamplesByStates,
    *,
    there: PerState,
) -> SamplesByStatesByGenes:
    """Return what of differences is certain.

    What lies within two standard errors counts as nothing, what lies further is trusted as far
    as it does so (the non-negative garrote, Breiman 1995, *Technometrics* 37:373).  A gene that a
    state does not express has no error: it goes back where it was.  Nothing leads from a state
    without cells, or to a reference that has none of it.
    """
    trust = count / (count + 1) * np.minimum(there, 1)
    noise = constants.STANDARD_ERRORS**2 * error2 / np.maximum(np.square(left), TINY**2)
    return left * trust[..., None] * (1 - noise).clip(0)
