"""What differs between samples within cell states: shifts, their errors, slopes of covariates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bioren.arrays.groups import TINY, effective_cells
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import (
    BoolPerSample,
    ByDims,
    ByStates,
    ByStatesByDims,
    CellsByCovariates,
    CellsByDims,
    CellsByStates,
    PerSample,
    PerState,
    SampleCodes,
    SamplesByStates,
    SamplesByStatesByCovariates,
    SamplesByStatesByDims,
    StatesByCovariatesByDims,
    StatesByDims,
)
from bioren.effects import constants

__all__ = [
    "Shifts",
    "covariate_slopes",
    "shifts_onto",
    "squared_errors",
    "state_shifts",
]


class Shifts(NamedTuple):
    """What differs between samples within states; samples x states x dims, or states x dims.

    Attributes
    ----------
    batch_effect
        Batch effect, as far as it is certain.
    sample_specific
        Sample-specific: outlying among the sample's shifts, hence no batch effect.  It is left as
        it is, and cells are not shrunk towards one another across it.
    inlier_weight
        How far each shift is like the sample's others, in [0, 1]; samples x states, or states.
    """

    batch_effect: ByStatesByDims
    sample_specific: ByStatesByDims
    inlier_weight: ByStates


def state_shifts(
    by_state: Moments,
    effective: SamplesByStates,
    in_reference: BoolPerSample,
    prior_shift: float,
    *,
    of_one_type: bool = False,
) -> Shifts:
    """Estimate each sample's shift from the reference within each state; samples x states x dims.

    Ridge regression on the sample, weighted by the share in the state, whose intercept is the
    reference: a mean in which samples with many cells weigh the same.  All shifts of a sample,
    in units of the spread within states, are taken as draws around zero (empirical Bayes): what
    their squares exceed the squared standard errors by, beyond two standard errors of that itself,
    says how far each is trusted.  A batch effect is much alike in all states; a shift far longer
    than the sample's others leads from one cell type to another, and is not followed.  Nor does
    such a sample count in the reference's mean of the state, where two others do: they are left
    out one at a time, the farthest first, as it draws the mean away from the others, and no more
    than half of the samples.  Where states are known to be `of_one_type`, all shifts are followed.
    """
    there = by_state.count * in_reference[:, None]
    weight = there / (by_state.count + prior_shift)  # samples x states
    within = by_state.m2.sum(axis=0) / np.maximum(by_state.count.sum(axis=0), TINY)[:, None]
    others = there.sum(axis=0) - there
    reference_weight = weight
    for _ in range(1 + len(weight) // 2):
        part = reference_weight / np.maximum(reference_weight.sum(axis=0), TINY)
        shift = by_state.mean - np.einsum("sk,skd->kd", part, by_state.mean)
        error2 = squared_errors(part, effective)  # in units of `within`
        square = _mean_square(shift, within)
        inlier_weight = np.ones_like(weight)
        if not of_one_type:
            inlier_weight = _inlier_weight(
                shift, square, within, count=by_state.count, error2=error2, others=others
            )
        fewer = _without_outlying(reference_weight, weight, inlier_weight, square=square)
        if np.array_equal(fewer, reference_weight):
            break
        reference_weight = fewer
    found = _shrunken(
        shift,
        square,
        by_state.count,
        error2=error2,
        inlier_weight=inlier_weight,
        others=others,
        prior_shift=prior_shift,
    )
    return _only_to_known(there.sum(axis=0), found, by_state.count)


def shifts_onto(
    z: CellsByDims, share: CellsByStates, reference: Moments, prior_shift: float
) -> Shifts:
    """Estimate a sample's shift from a reference that stays as it is, within each state.

    Parameters
    ----------
    z
        Embedding of the sample's cells, shape ``(cells, dims)``.
    share
        Each cell's share in each state, shape ``(cells, states)``.
    reference
        Groups ``(states,)``: the reference's cells in the embedding.
    prior_shift
        See `bioren.effects.clusters.StateOptions`.

    Returns
    -------
    Shifts
        As by `state_shifts`, shape ``(states, dims)``.
    """
    one = np.zeros(len(z), dtype=np.intp)
    by_state = Moments.by_group(z, one, 1, share)
    known = reference.count
    error2 = 1 / np.maximum(effective_cells(share, one, 1), 1) + 1 / np.maximum(known, 1)
    shift, within = by_state.mean - reference.mean, reference.var()
    square = _mean_square(shift, within)
    inlier_weight = _inlier_weight(
        shift, square, within, count=by_state.count, error2=error2, others=known[None]
    )
    found = _shrunken(
        shift,
        square,
        by_state.count,
        error2=error2,
        inlier_weight=inlier_weight,
        others=known[None],
        prior_shift=prior_shift,
    )
    removed, specific, inlier_weight = _only_to_known(known, found, by_state.count)
    return Shifts(removed[0], specific[0], inlier_weight[0])


def _without_outlying(
    reference_weight: SamplesByStates,
    weight: SamplesByStates,
    inlier_weight: SamplesByStates,
    *,
    square: SamplesByStates,
) -> SamplesByStates:
    """Return the weights in the reference without each state's farthest sample, if it is outlying.

    Of two samples neither is the outlying one: no more goes than the weights are worth beyond two
    of them (Kish 1965).

    Parameters
    ----------
    reference_weight, weight
        Present and full weights.
    inlier_weight
        See `Shifts`.
    square
        As for `_shrunken`.
    """
    far = reference_weight * (inlier_weight < constants.CLEARLY) * square
    farthest = far.argmax(axis=0), np.arange(far.shape[1])
    worth = np.square(reference_weight.sum(axis=0)) / np.maximum(
        np.square(reference_weight).sum(axis=0), TINY
    )
    fewer = np.where(far > 0, weight * (1 - (worth - 2).clip(0, 1)), reference_weight)
    left = reference_weight.copy()
    left[farthest] = np.minimum(reference_weight, fewer)[farthest]
    return left


def _inlier_weight(
    shift: SamplesByStatesByDims,
    square: SamplesByStates,
    within: StatesByDims,
    *,
    count: SamplesByStates,
    error2: SamplesByStates,
    others: SamplesByStates,
) -> SamplesByStates:
    """Return how far each shift is like the sample's others.

    A batch effect may be one offset for all cells, or one that grows with the spread of a state:
    shifts are compared in one unit, and in each state's own, and the better of both counts.

    Parameters
    ----------
    shift, square, count, error2
        As for `_shrunken`.
    within
        Variance within states.
    others
        Cells of the reference in each state that are not the sample's own.
    """
    # A state that the reference lacks tells nothing of what is an inlier.
    shared = count * others / (others + constants.PRIOR_CELLS)
    size = count.sum(axis=0)
    unit = (size @ within) / np.maximum(size.sum(), TINY)  # one variance per dimension
    ratio = np.mean(within / np.maximum(unit, TINY), axis=1)
    in_one = _like_median(_mean_square(shift, unit), error2 * ratio, shared)
    in_own = _like_median(square, error2, shared)
    return np.maximum(in_one, in_own)


def _like_median(
    square: SamplesByStates, error2: SamplesByStates, weight: SamplesByStates
) -> SamplesByStates:
    most = constants.OUTLYING * (_median(square, weight)[:, None] + error2)
    excess = np.maximum(square, TINY) / np.maximum(most, TINY)
    return np.maximum(excess, 1) ** -constants.STEEPNESS


def _mean_square(shift: SamplesByStatesByDims, variance: ByDims) -> SamplesByStates:
    return np.mean(np.square(shift) / np.maximum(variance, TINY), axis=-1)


def _shrunken(
    shift: SamplesByStatesByDims,
    square: SamplesByStates,
    count: SamplesByStates,
    *,
    error2: SamplesByStates,
    inlier_weight: SamplesByStates,
    others: SamplesByStates,
    prior_shift: float,
) -> Shifts:
    """Shrink shifts as `state_shifts` says.

    Parameters
    ----------
    shift
        What was estimated.
    square
        Its square, the mean over dimensions, in units of the variance within states.
    count
        Cells.
    error2
        Squared standard errors, in the same units.
    inlier_weight
        See `Shifts`.
    others
        As for `_inlier_weight`.
    prior_shift
        See `bioren.effects.clusters.StateOptions`.
    """
    cells = count / (count + constants.PRIOR_CELLS)
    # What is outlying, or has nothing to be compared with, tells nothing of the effect's size.
    counted = cells * inlier_weight * np.minimum(others, 1)
    whole = np.maximum(counted.sum(axis=1), TINY)
    excess = np.sum(counted * (square - error2), axis=1) / whole
    uncertain = np.sqrt(2 / shift.shape[-1] * np.square(counted * error2).sum(axis=1)) / whole
    tau2 = (excess - constants.STANDARD_ERRORS * uncertain).clip(0)[:, None]
    trust = count / (count + prior_shift) * inlier_weight * tau2 / np.maximum(tau2 + error2, TINY)
    return Shifts(
        shift * trust[..., None], shift * (cells * (1 - inlier_weight))[..., None], inlier_weight
    )


def _only_to_known(there: PerState, found: Shifts, count: SamplesByStates) -> Shifts:
    """Return shifts, none of which leads to a reference with less than a cell of the state.

    Nothing is outlying where the reference has no cell, or the sample itself.
    """
    known = np.minimum(there, 1)
    unusual = (1 - found.inlier_weight) * known * np.minimum(count, 1)
    effect, specific = (of * known[:, None] for of in found[:2])
    return Shifts(effect, specific, 1 - unusual)


def covariate_slopes(
    z: CellsByDims,
    covariates: CellsByCovariates,
    codes: SampleCodes,
    *,
    share: CellsByStates,
    by_state: Moments,
    prior_slope: float,
) -> tuple[StatesByCovariatesByDims, SamplesByStatesByCovariates]:
    """Regress the embedding on the covariates within samples and states, by ridge regression.

    Returns slopes, states x covariates x dims, and levels, samples x states x covariates; few
    cells of a sample in a state take the level of all of them.
    """
    n_samples, n_states = by_state.count.shape
    n_covariates = covariates.shape[1]
    levels = np.zeros((n_samples, n_states, n_covariates))
    cross = np.zeros((n_states, n_covariates, z.shape[1]))
    square = np.zeros((n_states, n_covariates, n_covariates))
    if n_covariates == 0:
        return cross, levels
    for sample in np.unique(codes):
        cells = codes == sample
        here, part, count = covariates[cells], share[cells], by_state.count[sample]
        levels[sample] = (part.T @ here) / np.maximum(count, TINY)[:, None]
        for c in range(n_covariates):
            weighted = part * here[:, [c]]
            cross[:, c] += weighted.T @ z[cells]
            cross[:, c] -= (count * levels[sample, :, c])[:, None] * by_state.mean[sample]
            square[:, c] += weighted.T @ here
            square[:, c] -= (count * levels[sample, :, c])[:, None] * levels[sample]
    # Towards nothing: shrunk towards one slope for all states, depth took the batch score of small
    # sets with it (.79 to .63 on five pancreas samples of 100 cells).
    slopes = np.linalg.solve(square + prior_slope * np.eye(n_covariates), cross)
    count = by_state.count[..., None]
    level = (count * levels).sum(axis=0) / np.maximum(count.sum(axis=0), TINY)
    prior = constants.PRIOR_CELLS
    return slopes, (count * levels + prior * level) / (count + prior)


def squared_errors(part: SamplesByStates, cells: SamplesByStates) -> SamplesByStates:
    """Return the squared errors of differences from a reference, in units of the variance.

    Parameters
    ----------
    part
        Each sample's part in the reference's mean of a state, shape ``(samples, states)``, 0 for
        samples outside of the reference; their means differ from it by ``m_s - sum_o p_o m_o``.
    cells
        Cells behind each mean, shape ``(samples, states)``; less than one counts as one.

    Returns
    -------
    numpy.ndarray
        ``(1 - p_s)**2 / n_s`` plus ``p_o**2 / n_o`` of the others, of the shape of `part`.
    """
    cells = np.maximum(cells, 1)
    error2 = (1 - 2 * part) / cells + (part**2 / cells).sum(axis=0)
    return error2.clip(0)


def _median(values: SamplesByStates, weight: SamplesByStates) -> PerSample:
    """Return the weighted median of each row."""
    order = np.argsort(values, axis=1)
    below = np.take_along_axis(weight, order, axis=1).cumsum(axis=1)
    middle = (below < 0.5 * below[:, -1:]).sum(axis=1, keepdims=True)
    place = np.take_along_axis(order, middle, axis=1)
    return np.take_along_axis(values, place, axis=1)[:, 0]
