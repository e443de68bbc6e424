"""Sample moments as if every sample had the reference's composition of cell states.

Two samples of 90/10 and 10/90 cell types differ in mean with no technical effect at all.
Direct standardization compares them within states instead, as epidemiology compares mortality
within age groups, and weighs the states as in the reference population.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from bioren.arrays.groups import TINY
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import (
    BoolPerSample,
    BySamplesOrGenes,
    ByStatesOrGenes,
    OfStatesOrGenes,
    PerGene,
    PerSample,
    SamplesByGenes,
    SamplesByStates,
    SamplesByStatesByGenes,
    StatesByGenes,
)
from bioren.bridge import per_gene
from bioren.effects import constants
from bioren.effects.state_profile import StateProfile, over_states

__all__ = [
    "Standardized",
    "overlap_of",
    "standardize",
    "standardize_onto",
]

#: So often states are weighed anew by what was not explained in them.
REWEIGHTED = 5

#: Ties between samples weaker than this share of the strongest count as none.
RESOLUTION = 1e-9


class Standardized(NamedTuple):
    """Comparable moments of samples and of their reference population.

    Attributes
    ----------
    samples
        Groups ``(samples,)``: what each sample's moments would be with the reference's
        composition, and its number of cells (by gene, where values are missing).
    reference
        No groups: the reference population, in which each sample weighs the same.
    standard_error
        Of the difference of their means, in the units of the data, shape ``(samples, genes)``;
        infinite where values are missing and a gene cannot be compared.
    scales_states
        Relative likelihood that a sample's ratios of spreads hold for the differences between its
        states as well, so that all of its expression is scaled, and not the noise within states
        alone; in [0, 1], shape ``(samples,)``.
    overlap
        How far a sample and others live in the same states, in [0, 1], shape ``(samples,)``; see
        `overlap_of`.  Below `MIN_OVERLAP` a sample's effect cannot be told from its composition:
        it counts as having none.
    profile
        The reference population, state by state.
    """

    samples: Moments
    reference: Moments
    standard_error: SamplesByGenes
    scales_states: PerSample
    overlap: PerSample
    profile: StateProfile


def standardize(
    by_state: Moments,
    in_reference: BoolPerSample | None = None,
) -> Standardized:
    """Separate what differs between samples from what differs between states.

    Per gene, the state means ``mu_sk`` are taken as ``a_k + b_s``: a level per state and a
    shift per sample, by least squares with weights ``pi_k * n_sk / (n_sk + PRIOR_CELLS)``,
    where ``pi`` is the reference's composition.  A sample that lacks some states is thus
    compared within the states that it has.  The spread is compared within states likewise.

    Where values are missing, numbers of cells and all that follows from them are each gene's own:
    as if the cells that have a value of it were the data.

    Parameters
    ----------
    by_state
        Groups ``(samples, states)``.
    in_reference
        Which samples make up the reference, boolean of shape ``(samples,)``; None: all.

    Returns
    -------
    Standardized
        The samples' means differ from the reference's by ``b_s``, their variances by the ratio
        of the variances within states.
    """
    n_samples = len(by_state.count)
    in_reference = np.ones(n_samples, dtype=bool) if in_reference is None else in_reference
    # In double precision: what ties samples is told from rounding.
    by_state = Moments(by_state.count.astype(np.float64), by_state.mean, by_state.m2)
    by_gene = by_state.incomplete
    cells = by_state.count.sum(axis=1)  # samples; here and below, by gene where values are missing
    composition = (by_state.count / np.maximum(cells, TINY)[:, None])[in_reference].mean(axis=0)
    if by_gene:  # not every sample has all genes
        composition /= np.maximum(composition.sum(axis=0), TINY)

    prior = constants.PRIOR_CELLS
    weight = composition * by_state.count / (by_state.count + prior)  # samples x states
    overlap = overlap_of(by_state.count)
    compared = overlap >= constants.MIN_OVERLAP
    if by_gene:
        overlap = np.sum(overlap * cells, axis=1) / np.maximum(cells.sum(axis=1), TINY)
        compared &= (overlap >= constants.MIN_OVERLAP)[:, None]
    # Left out of the comparison altogether: else the others would go half-way to what stays.
    solve = _shifts_by_gene if by_gene else _sample_shifts
    shift = solve(by_state.mean, weight * compared[:, None], in_reference)  # samples x genes

    # The reference: a level and a variance per state, then over the states.
    weight_there = (weight.T * in_reference).T
    share = weight_there / np.maximum(weight_there.sum(axis=0), TINY)
    level = np.einsum("sk...,sk...->k...", share, by_state.mean - shift[:, None])
    within = np.einsum("sk...,sk...->k...", share, by_state.var())
    n_there = by_state.count[in_reference].sum(axis=0)
    profile = StateProfile(composition, Moments(n_there, level, per_gene(n_there, level) * within))
    reference = profile.whole()

    ratio = _variance_ratio(by_state, within, weight * weight_there.sum(axis=0))
    squared = _squared_errors(by_state.count, weight, in_reference)
    error = np.sqrt(over_states(squared, within, by_gene=by_gene))
    if by_gene:
        error = np.where(compared & (weight.sum(axis=1) > 0), error, np.inf)
    ratio = np.where(per_gene(compared, ratio), ratio, 1.0)
    scales = _scales_states(by_state, shift, ratio, level=level, within=within)
    samples = _as_if_shifted(reference, cells, shift, ratio=ratio)
    return Standardized(samples, reference, error, scales, overlap, profile)


def standardize_onto(by_state: Moments, profile: StateProfile) -> Standardized:
    """Compare samples with a reference population that stays as it is, each by itself.

    As `standardize`, but the levels of the states are known: a sample's shift is the mean of its
    differences from them, with weights ``pi_k * n_sk / (n_sk + P) * n_k / (n_k + P)``, ``P`` being
    `PRIOR_CELLS`.

    Parameters
    ----------
    by_state
        Groups ``(samples, states)``; no sample has any influence on another.
    profile
        The reference population, by the same states.
    """
    known, within = profile.by_state, profile.by_state.var()
    n_known = np.maximum(known.count, TINY)
    cells = by_state.count.sum(axis=1)
    prior = constants.PRIOR_CELLS
    trusted = known.count / (known.count + prior)
    overlap = (by_state.count * trusted).sum(axis=1) / np.maximum(cells, TINY)
    compared = (overlap >= constants.MIN_OVERLAP)[:, None]

    weight = profile.composition * trusted * by_state.count / (by_state.count + prior)
    part = weight / np.maximum(weight.sum(axis=1, keepdims=True), TINY)
    shift = np.einsum("sk,skg->sg", part, by_state.mean - known.mean) * compared
    ratio = _variance_ratio(by_state, within, weight)
    squared = part**2 * (1 / np.maximum(by_state.count, TINY) + 1 / n_known)

    reference = profile.whole()
    ratio = np.where(compared, ratio, 1.0)
    samples = _as_if_shifted(reference, cells, shift, ratio=ratio)
    # States that come from elsewhere do not tell what a sample's scale acts on.
    everything = np.ones(len(cells))
    error = np.sqrt(squared @ within)
    return Standardized(samples, reference, error, everything, overlap, profile)


def _scales_states(
    by_state: Moments,
    shift: SamplesByGenes,
    ratio: SamplesByGenes,
    *,
    level: StatesByGenes,
    within: StatesByGenes,
) -> PerSample:
    """Return the relative likelihood that ratios of spreads hold between states, too.

    If they do, the means of a sample's states differ r times as much as the reference's; if the
    noise alone is scaled, just as much.  The likelihood of the former, by normal errors of the
    means over genes and states, is divided by the larger of both: 1 unless the data speak against
    it, as where there is one state.  What neither explains in a state, such as a type that the
    reference lacks, counts as error there (quasi-likelihood, McCullagh 1983).
    """
    scaled = np.ones(len(shift))
    n_known = np.maximum(by_state.count.sum(axis=(0, 1)), 1.0)

    def mean_by(part: OfStatesOrGenes, table: StatesByGenes) -> PerGene:
        return over_states(part, table, by_gene=by_state.incomplete)

    for sample, cells in enumerate(by_state.count):
        here = np.maximum(cells.sum(axis=0), TINY)
        measured = per_gene(cells, within)
        varies = (within > 0) & (measured > 0)  # states x genes
        # A state in which a gene is silent knows its mean no better than a tenth of the variance
        # elsewhere: what is left there comes from the other states.
        typical = mean_by(cells / here, within)
        error2 = np.where(varies, np.maximum(within, constants.SILENT * typical), 1.0)
        error2 = error2 / np.maximum(measured, 1)
        # The ratio itself is as uncertain as one of normal values.
        error2_of_r = ratio[sample] * (1 / np.maximum(here, 1.0) + 1 / n_known) / 2
        difference = by_state.mean[sample] - shift[sample] - level
        dispersion = np.ones(len(cells))
        for _ in range(REWEIGHTED):
            part = (cells.T / dispersion).T
            part = part / np.maximum(part.sum(axis=0), TINY)
            between = level - mean_by(part, level)
            left = difference - mean_by(part, difference)
            added = error2_of_r * np.square(between)
            alone = np.sum(varies * np.square(left) / error2, axis=1)
            left = left - (np.sqrt(ratio[sample]) - 1) * between
            whole = np.sum(varies * np.square(left) / (error2 + added), axis=1)
            explained = np.minimum(alone, whole) / np.maximum(1, varies.sum(axis=1))
            dispersion = np.maximum(1.0, explained)
        wider = np.sum(varies * np.log1p(added / error2), axis=1)
        log_ratio = np.sum((alone - whole) / dispersion - wider) / 2
        scaled[sample] = np.exp(min(log_ratio, 0.0))
    return scaled


def _as_if_shifted(
    reference: Moments, cells: BySamplesOrGenes, shift: SamplesByGenes, *, ratio: SamplesByGenes
) -> Moments:
    """Return the moments of samples that differ from the reference by a shift and a ratio."""
    spread = per_gene(cells, shift) * reference.var() * ratio
    return Moments(cells, reference.mean + shift, spread)


def overlap_of(count: ByStatesOrGenes) -> BySamplesOrGenes:
    """Return how far each sample and others live in the same states, in [0, 1].

    Share of the sample that lives in states which the others have.  Where that is little but much
    for one of them, as of a tissue beside cells of one sorted type, it is the geometric mean of
    the shares that either has in states of the other (Ochiai 1957), if this is larger.  A state
    counts half in which the others have `PRIOR_CELLS` cells, or as many as they would have with the
    sample's own composition, if these are fewer.

    Parameters
    ----------
    count
        Cells by sample and state, shape ``(samples, states)``, or for each gene by itself.
    """
    overlap = _share_in(count, count.sum(axis=0) - count)
    each = [_share_in(count, np.broadcast_to(one, count.shape)) for one in count]
    share = np.stack(each, axis=1)  # of a sample in states of another; samples x samples
    mutual = np.sqrt(share * np.swapaxes(share, 0, 1))
    mutual[np.diag_indices(len(count))] = 0
    return np.maximum(overlap, mutual.max(axis=1))


def _share_in(count: ByStatesOrGenes, there: ByStatesOrGenes) -> BySamplesOrGenes:
    """Return the share of each sample that has counterparts `there`."""
    part = count / np.maximum(count.sum(axis=1, keepdims=True), TINY)
    half = np.minimum(constants.PRIOR_CELLS, part * there.sum(axis=1, keepdims=True))
    return np.sum(part * there / np.maximum(there + half, TINY), axis=1)


def _squared_errors(
    count: ByStatesOrGenes, weight: ByStatesOrGenes, in_reference: BoolPerSample
) -> ByStatesOrGenes:
    """Return the shifts' squared errors in units of the variance within states.

    They are to be summed over the states.  A shift is found in the states that a sample shares
    with others, and there it is as uncertain as either side; the reference's variance stands for
    both, as a sample of one cell has none of its own.  Where a sample is part of the reference,
    which is the mean over its samples, the reference moves along with it.
    """
    tie = weight * (1 - weight / np.maximum(weight.sum(axis=0), TINY))
    part = tie / np.maximum(tie.sum(axis=1, keepdims=True), TINY)
    there = (count.T * in_reference).T
    others = there.sum(axis=0) - there
    of_reference = there.sum(axis=1, keepdims=True) > 0
    moved = 1 - of_reference / np.maximum(of_reference.sum(axis=0), 1)
    return (part * moved) ** 2 * (1 / np.maximum(count, TINY) + 1 / np.maximum(others, TINY))


def _sample_shifts(
    mean: SamplesByStatesByGenes, weight: SamplesByStates, in_reference: BoolPerSample
) -> SamplesByGenes:
    """Solve the additive model for the samples' shifts, which are 0 on average in the reference.

    The weights do not depend on the gene, so one small system serves all genes: eliminating the
    state levels leaves a Laplacian over the samples.  Only samples that states tie together,
    directly or by way of others, can be compared: each such set has a zero of its own, and one
    without a sample of the reference gets no shift.
    """
    share = weight / np.maximum(weight.sum(axis=0), TINY)  # of each sample in a state's level
    ties = weight @ share.T  # samples x samples
    laplacian = np.diag(weight.sum(axis=1)) - ties
    centered = mean - np.einsum("sk,skg->kg", share, mean)
    difference = np.einsum("sk,skg->sg", weight, centered)
    shift = np.linalg.pinv(laplacian, rcond=RESOLUTION, hermitian=True) @ difference
    n_sets, tied = sparse.csgraph.connected_components(ties > RESOLUTION * ties.max())
    for members in (tied == one for one in range(n_sets)):
        zero = members & in_reference
        shift[members] -= shift[zero].mean(axis=0) if zero.any() else shift[members]
    return shift


def _shifts_by_gene(
    mean: SamplesByStatesByGenes, weight: SamplesByStatesByGenes, in_reference: BoolPerSample
) -> SamplesByGenes:
    """Solve the additive model where values are missing: once for all genes of the same weights."""
    columns = weight.reshape(-1, weight.shape[-1])
    one_set = np.unique(columns, axis=1, return_inverse=True)[1].ravel()  # of each gene
    order = np.argsort(one_set, kind="stable")
    shift = np.empty((len(mean), mean.shape[-1]))
    for genes in np.split(order, np.flatnonzero(np.diff(one_set[order])) + 1):
        shift[:, genes] = _sample_shifts(mean[..., genes], weight[..., genes[0]], in_reference)
    return shift


def _variance_ratio(
    by_state: Moments, within: StatesByGenes, weight: ByStatesOrGenes
) -> SamplesByGenes:
    """Compare the variance within states with the reference's.

    Only states that both have count, `weight`; 1 where either side has no spread.
    """
    part = weight / np.maximum(weight.sum(axis=1, keepdims=True), TINY)
    expected = over_states(part, within, by_gene=by_state.incomplete)
    observed = np.einsum("sk...,sk...->s...", part, by_state.var())
    cells = per_gene(by_state.count.sum(axis=1), expected)
    prior = constants.PRIOR_CELLS
    shrunk = (cells * observed + prior * expected) / (cells + prior)
    comparable = (expected > 0) & (observed > 0)
    return np.divide(shrunk, expected, out=np.ones_like(expected), where=comparable)
