"""Soft clusters of unit vectors, with a reward for clusters in which samples are mixed.

Maximum-diversity clustering (Korsunsky et al. 2019, *Nature Methods* 16:1289, equations 3 to 7).
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from bioren.arrays.groups import TINY, sample_sums
from bioren.arrays.shapes import (
    CellsByDims,
    CellsByStates,
    LabelCodes,
    PerSample,
    Positions,
    RowsByDims,
    SampleCodes,
    SamplesByStates,
    StateCodes,
    StatesByDims,
)
from bioren.effects import constants

__all__ = [
    "StateOptions",
    "allowed_states",
    "default_n_states",
    "diverse_clusters",
    "first_centers",
    "nearness",
    "sketched",
    "unit_vectors",
]

#: States are sought among so many cells; all cells are then compared within them.
SKETCH = 5000

#: Added to the log-responsibility where a label rules a state out.
NEVER = -1e9


class StateOptions(NamedTuple):
    """How states are found and how far their shifts are trusted.

    Attributes
    ----------
    width
        Softness of the assignment, in units of cosine distance (Korsunsky's sigma).
    diversity
        Reward for states that all samples share (theta); 0 is plain soft k-means.
    prior_shift
        A shift counts ``n / (n + prior_shift)`` for ``n`` cells of a sample in a state.
    prior_slope
        A covariate's slope counts ``n / (n + prior_slope)`` for ``n`` cells in a state.
    iterations
        At most so many iterations of clustering and shifting, at least one.
    """

    width: float = 0.07
    diversity: float = 2.0
    prior_shift: float = 1.0
    prior_slope: float = 100.0
    iterations: int = 10


def default_n_states(n_cells: int) -> int:
    """Return the number of states for so many cells: one per 30, between 1 and 100."""
    n_states = round(n_cells / constants.CELLS_PER_STATE)
    return int(np.clip(n_states, 1, constants.MAX_STATES))


def first_centers(
    unit: CellsByDims, labels: LabelCodes | None, n_states: int, *, rng: np.random.Generator
) -> tuple[StatesByDims, StateCodes | None]:
    """Return the first centers and the label of each; every label has a state of its own.

    Cells without a label are placed among these states, wherever they fit best.
    """
    if labels is None or (labels < 0).all():
        return _k_means(unit, n_states, rng), None
    centers, of_state = [], []
    known = labels[labels >= 0]
    for label, n_cells in zip(*np.unique(known, return_counts=True), strict=True):
        some = max(1, round(n_states * n_cells / len(known)))
        centers.append(_k_means(unit[labels == label], some, rng))
        of_state.append(np.full(len(centers[-1]), label))
    return np.concatenate(centers), np.concatenate(of_state)


def allowed_states(
    labels: LabelCodes | None, state_labels: StateCodes | None
) -> CellsByStates | None:
    """Return 0 where a cell may be in a state, `NEVER` where not; cells x states, or None.

    A cell may not be in states of other labels; if its own label is unknown, or was when the
    states were found, it may be in any.
    """
    if labels is None or state_labels is None:
        return None
    known = np.isin(labels, state_labels)
    of_others = labels[:, None] != state_labels
    return np.where(known[:, None] & of_others, np.float32(NEVER), np.float32(0))


def diverse_clusters(
    unit: CellsByDims,
    codes: SampleCodes,
    n_samples: int,
    *,
    centers: StatesByDims,
    allowed: CellsByStates | None,
    options: StateOptions,
    rng: np.random.Generator,
) -> tuple[StatesByDims, SamplesByStates]:
    """Cluster unit vectors softly, rewarding states in which the samples are mixed.

    Returns the centers and, per sample and state, ``theta * log(expected / observed)``.
    """
    proportion = np.bincount(codes, minlength=n_samples) / len(codes)

    def closeness_to(centers: StatesByDims) -> CellsByStates:
        closeness = nearness(unit, centers, options.width)
        return closeness if allowed is None else closeness + allowed

    share = softmax(closeness_to(centers), axis=1)
    before = np.inf
    n_blocks = min(20, len(unit))
    for _ in range(20):
        centers = unit_vectors(share.T @ unit)
        closeness = closeness_to(centers)
        observed = sample_sums(share, codes, n_samples)  # samples x states
        # Soft k-means objective with entropy and diversity terms (Korsunsky, equation 5).  The
        # logarithms of shares are their logits less those' log-sum-exp: none has to be taken.
        objective = 0.0
        for block in np.array_split(rng.permutation(len(unit)), n_blocks):
            own = codes[block]
            # By a matrix product, which sums so few cells sooner than `sample_sums`.
            member = np.equal.outer(np.arange(n_samples), own).astype(unit.dtype)
            observed -= member @ share[block]
            odds = _log_odds(observed, proportion, options.diversity)
            updated, log_sum = _shares(closeness[block] + odds.astype(unit.dtype)[own])
            share[block] = updated
            here = member @ updated
            objective += float(np.sum(here * odds) - log_sum)
            observed += here
        odds = _log_odds(observed, proportion, options.diversity)
        objective -= float(np.sum(observed * odds))
        if before - objective < 1e-4 * abs(objective):
            break
        before = objective
    return centers, odds


def sketched(
    codes: SampleCodes,
    n_samples: int,
    rng: np.random.Generator,
    *,
    labels: LabelCodes | None = None,
) -> Positions:
    """Choose the cells among which states are sought, ascending.

    Small samples give all of theirs, and so do labels of which no cell was chosen.
    """
    if len(codes) <= SKETCH:
        return np.arange(len(codes))
    size = np.bincount(codes, minlength=n_samples)
    # The quota that all samples together fill: those that are smaller leave room for the others.
    ascending = np.sort(size)
    before = np.concatenate([[0], np.cumsum(ascending)[:-1]])
    room = (SKETCH - before) // np.arange(n_samples, 0, -1)
    quota = max(1, room[np.argmax(ascending > room)])
    order = rng.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    rank = np.arange(len(codes)) - np.repeat(np.cumsum(size) - size, size)
    chosen = np.zeros(len(codes), dtype=bool)
    chosen[order[rank < quota]] = True
    if labels is not None:
        chosen |= (labels >= 0) & ~np.isin(labels, labels[chosen])
    return np.flatnonzero(chosen)


def _shares(logits: CellsByStates) -> tuple[CellsByStates, float]:
    """Return the softmax of each row, in the place of `logits`, and the sum of log-sum-exps."""
    most = logits.max(axis=1, keepdims=True)
    logits -= most
    np.exp(logits, out=logits)
    total = logits.sum(axis=1, keepdims=True)
    logits /= total
    return logits, float(np.sum(most + np.log(total), dtype=np.float64))


def nearness(unit: CellsByDims, centers: StatesByDims, width: float) -> CellsByStates:
    """Return log-responsibilities but for a constant, of unit vectors; cells x states."""
    return 2 * (unit @ centers.T - 1) / width


def unit_vectors(x: RowsByDims) -> RowsByDims:
    """Return rows of unit length, rows of zeros as they are; scikit-learn's refuses no rows."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), TINY)


def _k_means(unit: CellsByDims, n_states: int, rng: np.random.Generator) -> StatesByDims:
    seed = int(rng.integers(2**31))
    n_states = min(n_states, len(unit))
    with warnings.catch_warnings():
        # Fewer distinct cells than states: some states then coincide, which does no harm.
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans = KMeans(n_states, n_init=1, max_iter=25, random_state=seed).fit(unit)
    return unit_vectors(kmeans.cluster_centers_)


def _log_odds(
    observed: SamplesByStates, proportion: PerSample, diversity: float
) -> SamplesByStates:
    expected = proportion[:, None] * observed.sum(axis=0)
    return diversity * np.log((expected.clip(0) + 1) / (observed.clip(0) + 1))
