"""Soft cell states shared by the samples, and the bridge per state and sample in an embedding.

States are found by maximum-diversity clustering and what differs between samples within a state
is shifted away, as in Harmony (Korsunsky et al. 2019, *Nature Methods* 16:1289, equations 3 to
13), with these differences:

* the target is a reference population in which each sample weighs the same, or the samples that
  the caller names;
* shifts are shrunk as far as their own standard errors explain them, so that samples without a
  batch effect stay as they are;
* covariates such as a cell's depth are regressed out within states, whose own levels stay;
* known labels, of some cells or all, keep states from reaching over two labels;
* each round is kept as a pure function of a cell, what is known of it, and its sample.  The
  fitted bridge therefore gives a cell the same result alone, in any chunk and in any order.

Arrays: z cells x dims, responsibilities cells x states, codes cells, tables samples x states.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from bioren.moments import Moments

__all__ = ["CellFacts", "ConditionalBridge", "Placed", "Round", "StateOptions"]

#: Guards divisions by a sum of weights that may be zero; no real weight is as small.
TINY = 1e-12

#: Added to the log-responsibility where a label rules a state out.
NEVER = -1e9

#: A shift whose square exceeds that of the sample's median cell so many times is distrusted.
UNUSUAL = 1.5


class StateOptions(NamedTuple):
    """How states are found and how far their shifts are trusted.

    Attributes
    ----------
    width
        Softness of the assignment, in units of cosine distance (Korsunsky's sigma).
    diversity
        Reward for states that all samples share (theta); 0 is plain soft k-means.
    prior_cells
        A shift counts ``n / (n + prior_cells)`` for ``n`` cells of a sample in a state.
    prior_slope
        A covariate's slope counts ``n / (n + prior_slope)`` for ``n`` cells in a state.
    rounds
        At most so many rounds of clustering and shifting, at least one.
    """

    width: float = 0.07
    diversity: float = 2.0
    prior_cells: float = 1.0
    prior_slope: float = 100.0
    rounds: int = 10


class CellFacts(NamedTuple):
    """What is known of each cell, apart from its expression.

    Attributes
    ----------
    codes
        Sample, in ``range(n_samples)``, shape ``(cells,)``.
    covariates
        Continuous covariates, shape ``(cells, covariates)``; None: there are none.
    labels
        Number of the cell's label, -1 where it is unknown, shape ``(cells,)``; None: all unknown.
    """

    codes: np.ndarray
    covariates: np.ndarray | None = None
    labels: np.ndarray | None = None

    def of(self, cells: np.ndarray | slice) -> CellFacts:
        """Return what is known of some cells."""
        covariates, labels = (
            None if fact is None else fact[cells] for fact in (self.covariates, self.labels)
        )
        return CellFacts(self.codes[cells], covariates, labels)


class Round(NamedTuple):
    """One round, frozen: enough to place any cell of a known sample.

    Attributes
    ----------
    centers
        Directions of the states, shape ``(states, dims)``, unit length.
    log_odds
        Added to the log-responsibility of a sample's cells, shape ``(samples, states)``.
    shifts
        Subtracted from a sample's cells in a state, shape ``(samples, states, dims)``.
    slopes
        Of the covariates within a state, shape ``(states, covariates, dims)``.
    levels
        The covariates' means, shape ``(samples, states, covariates)``.
    """

    centers: np.ndarray
    log_odds: np.ndarray
    shifts: np.ndarray
    slopes: np.ndarray
    levels: np.ndarray


class Placed(NamedTuple):
    """Cells in the reference population.

    Attributes
    ----------
    full
        Embedding from which everything that differs between samples is removed.
    share
        Each cell's share in each state, shape ``(cells, states)``, rows sum to 1.
    kept
        What is to stay of the samples' differences: ``full + kept`` is the result.
    """

    full: np.ndarray
    share: np.ndarray
    kept: np.ndarray


@dataclass(frozen=True)
class ConditionalBridge:
    """Shifts per state and sample that carry an embedding to the reference population.

    Attributes
    ----------
    rounds
        The frozen rounds, in the order of their application.
    width
        Softness of the assignment, as fitted.
    kept
        Of the last round's shifts, what is not removed; shape ``(samples, states, dims)``.
    state_labels
        Label of each state, which no cell of another label joins, shape ``(states,)``; None: the
        model was fitted without labels.
    unit
        Unit of each covariate, its standard deviation within samples.
    """

    rounds: tuple[Round, ...]
    width: float
    kept: np.ndarray
    state_labels: np.ndarray | None
    unit: np.ndarray

    @classmethod
    def fit(
        cls,
        z: np.ndarray,
        facts: CellFacts,
        n_samples: int,
        *,
        rng: np.random.Generator,
        in_reference: np.ndarray | None = None,
        n_states: int | None = None,
        strength: float = 1.0,
        options: StateOptions | None = None,
    ) -> Self:
        """Find states and shifts.

        Parameters
        ----------
        z
            Embedding, shape ``(cells, dims)``, finite.
        facts
            Sample, covariates and label of each cell.
        n_samples
            Number of samples.
        rng
            Source of randomness: the initial centers and the order of updates.
        in_reference
            Which samples make up the reference, boolean of shape ``(n_samples,)``; None: all.
        n_states
            Number of states, no more than cells; None: one per 30 cells, at most 100.
        strength
            Share of each shift that is carried out, in [0, 1].
        options
            See `StateOptions`.

        Raises
        ------
        ValueError
            There are no cells, or `options` ask for no round.
        """
        options = options or StateOptions()
        if len(z) == 0 or options.rounds < 1:
            msg = f"Expected cells and rounds, received {len(z)} cells, {options.rounds} rounds."
            raise ValueError(msg)
        in_reference = np.ones(n_samples, dtype=bool) if in_reference is None else in_reference
        n_states = min(n_states or default_n_states(len(z)), len(z))
        unit = _within_sample_spread(facts, n_samples)
        covariates = _in_units(facts, unit)
        centers, state_labels = _start(_unit(z), facts.labels, n_states, rng)
        allowed = _allowed(facts.labels, state_labels)

        rounds: list[Round] = []
        moved = z
        for _ in range(options.rounds):
            centers, log_odds = _diverse_clusters(
                _unit(moved), facts.codes, n_samples, centers, allowed, options, rng
            )
            share = _responsibilities(moved, facts.codes, centers, log_odds, allowed, options.width)
            by_state = Moments.by_group(z, facts.codes, n_samples, share)
            effective = _effective_cells(share, facts.codes, n_samples)
            shifts = _state_shifts(by_state, effective, in_reference, options.prior_cells)
            slopes, levels = _slopes(z, covariates, facts.codes, share, by_state, options)
            rounds.append(Round(centers, log_odds, shifts, slopes, levels))
            before, moved = moved, _moved(z, facts.codes, covariates, share, rounds[-1])
            if _relative_change(before, moved) < 1e-3:
                break
        kept = (1 - strength) * rounds[-1].shifts
        return cls(tuple(rounds), options.width, kept, state_labels, unit)

    def limited(self, limit: Callable[[np.ndarray], np.ndarray]) -> Self:
        """Return the bridge that removes no more than ``limit(shifts)`` of what it removes now."""
        removed = self.rounds[-1].shifts - self.kept
        return replace(self, kept=self.rounds[-1].shifts - limit(removed))

    def removed(self, share: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return the shift that is removed from each cell, shape ``(cells, dims)``."""
        shift: np.ndarray = mixed(share, codes, self.rounds[-1].shifts - self.kept)
        return shift

    def apply(self, z: np.ndarray, facts: CellFacts) -> np.ndarray:
        """Carry cells to the reference population.

        Parameters
        ----------
        z
            Embedding before the bridge, shape ``(cells, dims)``.
        facts
            Sample, covariates and label of each cell, as in `fit`; labels may be unknown.

        Returns
        -------
        numpy.ndarray
            Shape and dtype of `z`.  Each row depends on its own cell alone.
        """
        placed = self.place(z, facts)
        moved: np.ndarray = placed.full + placed.kept
        return moved

    def states(self, z: np.ndarray, facts: CellFacts) -> np.ndarray:
        """Return each cell's share in each state, shape ``(cells, states)``, rows sum to 1."""
        return self.place(z, facts).share

    def place(self, z: np.ndarray, facts: CellFacts) -> Placed:
        """Return the embedding without what is to go, its states, and what is to stay."""
        covariates = _in_units(facts, self.unit)
        allowed = _allowed(facts.labels, self.state_labels)
        moved = z
        for step in self.rounds:
            share = _responsibilities(
                moved, facts.codes, step.centers, step.log_odds, allowed, self.width
            )
            moved = _moved(z, facts.codes, covariates, share, step)
        return Placed(moved, share, mixed(share, facts.codes, self.kept).astype(z.dtype))


def default_n_states(n_cells: int) -> int:
    """Return the number of states for so many cells: one per 30, between 1 and 100."""
    return int(np.clip(round(n_cells / 30), 1, 100))


def _start(
    unit: np.ndarray, labels: np.ndarray | None, n_states: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
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


def _k_means(unit: np.ndarray, n_states: int, rng: np.random.Generator) -> np.ndarray:
    seed = int(rng.integers(2**31))
    n_states = min(n_states, len(unit))
    with warnings.catch_warnings():
        # Fewer distinct cells than states: some states then coincide, which does no harm.
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans = KMeans(n_states, n_init=1, max_iter=25, random_state=seed).fit(unit)
    return _unit(kmeans.cluster_centers_)


def _allowed(labels: np.ndarray | None, state_labels: np.ndarray | None) -> np.ndarray | None:
    """Return 0 where a cell may be in a state, `NEVER` where not; cells x states, or None.

    A cell may not be in states of other labels; if its own label is unknown, or was when the
    states were found, it may be in any.
    """
    if labels is None or state_labels is None:
        return None
    known = np.isin(labels, state_labels)
    of_others = labels[:, None] != state_labels
    return np.where(known[:, None] & of_others, np.float32(NEVER), np.float32(0))


def _diverse_clusters(
    unit: np.ndarray,
    codes: np.ndarray,
    n_samples: int,
    centers: np.ndarray,
    allowed: np.ndarray | None,
    options: StateOptions,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster unit vectors softly, rewarding states in which the samples are mixed.

    Returns the centers and, per sample and state, ``theta * log(expected / observed)``.
    """
    proportion = np.bincount(codes, minlength=n_samples) / len(codes)

    def closeness_to(centers: np.ndarray) -> np.ndarray:
        closeness: np.ndarray = 2 * (unit @ centers.T - 1) / options.width
        return closeness if allowed is None else closeness + allowed

    share = _softmax(closeness_to(centers))
    observed = sample_sums(share, codes, n_samples)  # samples x states
    before = np.inf
    n_blocks = min(20, len(unit))
    for _ in range(20):
        centers = _unit(share.T @ unit)
        closeness = closeness_to(centers)
        order = rng.permutation(len(unit))
        for block in np.array_split(order, n_blocks):
            observed -= sample_sums(share[block], codes[block], n_samples)
            odds = _log_odds(observed, proportion, options.diversity).astype(unit.dtype)
            share[block] = _softmax(closeness[block] + odds[codes[block]])
            observed += sample_sums(share[block], codes[block], n_samples)
        # Soft k-means objective with entropy and diversity terms (Korsunsky, equation 5).
        odds = _log_odds(observed, proportion, options.diversity)
        entropy = np.sum(share * np.log(share + share.dtype.type(TINY)))
        objective = entropy - np.sum(share * closeness) - np.sum(observed * odds)
        if before - objective < 1e-4 * abs(objective):
            break
        before = objective
    return centers, _log_odds(observed, proportion, options.diversity)


def _log_odds(observed: np.ndarray, proportion: np.ndarray, diversity: float) -> np.ndarray:
    expected = proportion[:, None] * observed.sum(axis=0)
    odds: np.ndarray = diversity * np.log((expected.clip(0) + 1) / (observed.clip(0) + 1))
    return odds


def _state_shifts(
    by_state: Moments, effective: np.ndarray, in_reference: np.ndarray, prior_cells: float
) -> np.ndarray:
    """Estimate each sample's shift from the reference within each state; samples x states x dims.

    Ridge regression on the sample, weighted by the share in the state, whose intercept is the
    reference: a mean in which samples with many cells weigh the same.  All shifts of a sample,
    in units of the spread within states, are taken as draws around zero (empirical Bayes): what
    their squares exceed the squared standard errors by, beyond two standard errors of that itself,
    says how far each is trusted.  A batch effect is much alike in all states; a shift far longer
    than the sample's others leads from one cell type to another, and is not followed.
    """
    trust = by_state.count / (by_state.count + prior_cells)  # samples x states
    weight = trust * in_reference[:, None]
    part = weight / np.maximum(weight.sum(axis=0), TINY)
    shift = by_state.mean - np.einsum("sk,skd->kd", part, by_state.mean)
    within = by_state.m2.sum(axis=0) / np.maximum(by_state.count.sum(axis=0), TINY)[:, None]
    error2 = squared_errors(part, effective)  # in units of `within`
    square = np.mean(np.square(shift) / np.maximum(within, TINY), axis=-1)
    cells = by_state.count / (by_state.count + 10)
    whole = np.maximum(cells.sum(axis=1), TINY)
    excess = np.sum(cells * (square - error2), axis=1) / whole
    uncertain = np.sqrt(2 / shift.shape[-1] * np.square(cells * error2).sum(axis=1)) / whole
    signal = (excess - 2 * uncertain).clip(0)[:, None]
    # A state that the reference lacks tells nothing of what is usual.
    there = by_state.count * in_reference[:, None]
    others = there.sum(axis=0) - there
    usual = UNUSUAL * _median(square, by_state.count * others / (others + 10))[:, None]
    trust = trust * np.minimum(1, usual / np.maximum(square, TINY)) ** 2
    # Nothing leads to a reference that holds less than a cell of this state.
    trust = trust * np.minimum(there.sum(axis=0), 1) * signal / np.maximum(signal + error2, TINY)
    shrunk: np.ndarray = shift * trust[..., None]
    return shrunk


def squared_errors(part: np.ndarray, cells: np.ndarray) -> np.ndarray:
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
    errors: np.ndarray = (1 - 2 * part) / cells + (part**2 / cells).sum(axis=0)
    return errors.clip(0)


def _median(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the weighted median of each row."""
    order = np.argsort(values, axis=1)
    below = np.take_along_axis(weight, order, axis=1).cumsum(axis=1)
    middle = (below < 0.5 * below[:, -1:]).sum(axis=1, keepdims=True)
    place = np.take_along_axis(order, middle, axis=1)
    median: np.ndarray = np.take_along_axis(values, place, axis=1)[:, 0]
    return median


def _slopes(
    z: np.ndarray,
    covariates: np.ndarray,
    codes: np.ndarray,
    share: np.ndarray,
    by_state: Moments,
    options: StateOptions,
) -> tuple[np.ndarray, np.ndarray]:
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
    # Towards nothing: drawn towards one slope for all states, depth took the batch score of small
    # sets with it (.79 to .63 on five pancreas samples of 100 cells).
    slopes = np.linalg.solve(square + options.prior_slope * np.eye(n_covariates), cross)
    count = by_state.count[..., None]
    level = (count * levels).sum(axis=0) / np.maximum(count.sum(axis=0), TINY)
    return slopes, (count * levels + 10 * level) / (count + 10)


def _effective_cells(share: np.ndarray, codes: np.ndarray, n_samples: int) -> np.ndarray:
    """Return how many whole cells the shares are worth, samples x states (Kish 1965)."""
    total = sample_sums(share, codes, n_samples)
    square = sample_sums(share**2, codes, n_samples)
    effective: np.ndarray = total**2 / np.maximum(square, TINY)
    return effective


def sample_sums(share: np.ndarray, codes: np.ndarray, n_samples: int) -> np.ndarray:
    """Sum the rows of each sample, samples x states, in double precision."""
    sums = np.zeros((n_samples, share.shape[1]))
    order = np.argsort(codes, kind="stable")
    samples, starts = np.unique(codes[order], return_index=True)
    if len(samples):
        sums[samples] = np.add.reduceat(share[order], starts, axis=0, dtype=np.float64)
    return sums


def _responsibilities(
    z: np.ndarray,
    codes: np.ndarray,
    centers: np.ndarray,
    log_odds: np.ndarray,
    allowed: np.ndarray | None,
    width: float,
) -> np.ndarray:
    logits = 2 * (_unit(z) @ centers.T - 1) / width + log_odds[codes].astype(z.dtype)
    return _softmax(logits if allowed is None else logits + allowed)


def _moved(
    z: np.ndarray, codes: np.ndarray, covariates: np.ndarray, share: np.ndarray, step: Round
) -> np.ndarray:
    offset = mixed(share, codes, step.shifts - np.einsum("skc,kcd->skd", step.levels, step.slopes))
    for c in range(covariates.shape[1]):
        offset += covariates[:, [c]] * (share @ step.slopes[:, c])
    moved: np.ndarray = (z - offset).astype(z.dtype)
    return moved


def mixed(share: np.ndarray, codes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the mean of a table's rows, samples x states x dims, by each cell's shares."""
    mixed = np.empty((len(share), table.shape[-1]))
    for sample in np.unique(codes):
        cells = codes == sample
        mixed[cells] = share[cells] @ table[sample]
    return mixed


def _within_sample_spread(facts: CellFacts, n_samples: int) -> np.ndarray:
    if facts.covariates is None:
        return np.ones(0)
    moments = Moments.by_group(facts.covariates, facts.codes, n_samples)
    spread = np.sqrt(moments.m2.sum(axis=0) / len(facts.codes))
    unit: np.ndarray = np.where(spread > 0, spread, 1.0)
    return unit


def _in_units(facts: CellFacts, unit: np.ndarray) -> np.ndarray:
    given = np.zeros((len(facts.codes), 0)) if facts.covariates is None else facts.covariates
    if given.shape[1] != len(unit):
        msg = f"Fitted with {len(unit)} covariates, received {given.shape[1]}."
        raise ValueError(msg)
    in_units: np.ndarray = given / unit
    return in_units


def _relative_change(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.linalg.norm(after - before)) / max(float(np.linalg.norm(before)), TINY)


def _unit(x: np.ndarray) -> np.ndarray:
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), TINY)
    return unit


def _softmax(x: np.ndarray) -> np.ndarray:
    shares: np.ndarray = np.exp(x - x.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return shares
