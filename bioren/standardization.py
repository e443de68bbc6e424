"""Sample moments as if every sample had the reference's composition of cell states.

Two samples of 90/10 and 10/90 cell types differ in mean with no technical effect at all.
Direct standardisation compares them within states instead, as epidemiology compares mortality
within age groups, and weighs the states as in the reference population.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bioren.moments import Moments

__all__ = ["Standardized", "standardize"]

#: Guards divisions by a sum of weights that may be zero; no real weight is as small.
TINY = 1e-12


class Standardized(NamedTuple):
    """Comparable moments of samples and of their reference population.

    Attributes
    ----------
    samples
        Groups ``(samples,)``: what each sample's moments would be with the reference's
        composition, and its number of cells.
    reference
        No groups: the reference population, in which each sample weighs the same.
    standard_error
        Of the samples' means, in the units of the data, shape ``(samples, genes)``.
    """

    samples: Moments
    reference: Moments
    standard_error: np.ndarray


def standardize(
    by_state: Moments, in_reference: np.ndarray | None = None, *, prior_cells: float = 10.0
) -> Standardized:
    """Separate what differs between samples from what differs between states.

    Per gene, the state means ``mu_sk`` are taken as ``a_k + b_s``: a level per state and a
    shift per sample, by least squares with weights ``pi_k * n_sk / (n_sk + prior_cells)``,
    where ``pi`` is the reference's composition.  A sample that lacks some states is thus
    compared within the states that it has.  The spread is compared within states likewise.

    Parameters
    ----------
    by_state
        Groups ``(samples, states)``.
    in_reference
        Which samples make up the reference, boolean of shape ``(samples,)``; None: all.
    prior_cells
        A state in which a sample has so many cells counts half; a sample of so many cells has
        its variance drawn half-way to the reference's.

    Returns
    -------
    Standardized
        The samples' means differ from the reference's by ``b_s``, their variances by the ratio
        of the variances within states.
    """
    n_samples = len(by_state.count)
    in_reference = np.ones(n_samples, dtype=bool) if in_reference is None else in_reference
    cells = by_state.count.sum(axis=1)  # samples
    composition = (by_state.count / np.maximum(cells, TINY)[:, None])[in_reference].mean(axis=0)

    weight = composition * by_state.count / (by_state.count + prior_cells)  # samples x states
    shift = _sample_shifts(by_state.mean, weight, in_reference)  # samples x genes

    # The reference: a level and a variance per state, then over the states.
    weight_there = weight * in_reference[:, None]
    share = weight_there / np.maximum(weight_there.sum(axis=0), TINY)
    level = np.einsum("sk,skg->kg", share, by_state.mean - shift[:, None])
    within = np.einsum("sk,skg->kg", share, by_state.var())
    mean = composition @ level
    variance = composition @ (within + (level - mean) ** 2)

    ratio = _variance_ratio(by_state, within, weight * weight_there.sum(axis=0), prior_cells)
    samples = Moments(cells, mean + shift, cells[:, None] * variance * ratio)
    n_reference = cells[in_reference].sum()
    reference = Moments(n_reference, mean, n_reference * variance)

    # Errors from the reference's variance: a sample of one cell has none of its own.
    part = weight / np.maximum(weight.sum(axis=1, keepdims=True), TINY)
    error2 = (part**2 / np.maximum(by_state.count, 1)) @ within
    return Standardized(samples, reference, np.sqrt(error2))


def _sample_shifts(mean: np.ndarray, weight: np.ndarray, in_reference: np.ndarray) -> np.ndarray:
    """Solve the additive model for the samples' shifts, which are 0 on average in the reference.

    The weights do not depend on the gene, so one small system serves all genes: eliminating the
    state levels leaves a Laplacian over the samples.  Samples that share no state with the rest
    (its null space) get no shift.
    """
    share = weight / np.maximum(weight.sum(axis=0), TINY)  # of each sample in a state's level
    laplacian = np.diag(weight.sum(axis=1)) - weight @ share.T
    centered = mean - np.einsum("sk,skg->kg", share, mean)
    difference = np.einsum("sk,skg->sg", weight, centered)
    shift = np.linalg.pinv(laplacian, rcond=1e-9, hermitian=True) @ difference
    return shift - shift[in_reference].mean(axis=0)


def _variance_ratio(
    by_state: Moments, within: np.ndarray, weight: np.ndarray, prior_cells: float
) -> np.ndarray:
    """Compare the variance within states with the reference's; samples x genes.

    Only states that both have count, `weight`; 1 where either side has no spread.
    """
    part = weight / np.maximum(weight.sum(axis=1, keepdims=True), TINY)
    expected = part @ within
    observed = np.einsum("sk,skg->sg", part, by_state.var())
    cells = by_state.count.sum(axis=1)[:, None]
    drawn = (cells * observed + prior_cells * expected) / (cells + prior_cells)
    comparable = (expected > 0) & (observed > 0)
    return np.divide(drawn, expected, out=np.ones_like(expected), where=comparable)
