"""Soft cell states shared by the samples, and the bridge per state and sample in an embedding.

States are found by maximum-diversity clustering and what differs between samples within a state
is shifted away, as in Harmony (Korsunsky et al. 2019, *Nature Methods* 16:1289, equations 3 to
13), with three differences:

* the target is a reference population in which each sample weighs the same, or the samples that
  the caller names;
* a shift that its own standard error explains is shrunk to nothing (James & Stein 1961), so
  that samples without a batch effect stay as they are;
* each round is kept as a pure function of a cell's embedding and its sample.  The fitted bridge
  therefore gives a cell the same result alone, in any chunk and in any order.

Arrays: z cells x dims, responsibilities cells x states, codes cells, tables samples x states.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from bioren.moments import Moments

__all__ = ["ConditionalBridge", "Round", "StateOptions"]


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
    rounds
        At most so many rounds of clustering and shifting, at least one.
    """

    width: float = 0.1
    diversity: float = 2.0
    prior_cells: float = 1.0
    rounds: int = 10


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
    """

    centers: np.ndarray
    log_odds: np.ndarray
    shifts: np.ndarray


@dataclass(frozen=True)
class ConditionalBridge:
    """Shifts per state and sample that carry an embedding to the reference population.

    Attributes
    ----------
    rounds
        The frozen rounds, in the order of their application.
    width
        Softness of the assignment, as fitted.
    """

    rounds: tuple[Round, ...]
    width: float

    @classmethod
    def fit(
        cls,
        z: np.ndarray,
        codes: np.ndarray,
        n_samples: int,
        *,
        rng: np.random.Generator,
        in_reference: np.ndarray | None = None,
        n_states: int | None = None,
        strength: float = 1.0,
        options: StateOptions | None = None,
    ) -> ConditionalBridge:
        """Find states and shifts.

        Parameters
        ----------
        z
            Embedding, shape ``(cells, dims)``, finite.
        codes
            Sample of each cell, in ``range(n_samples)``.
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
        rounds: list[Round] = []
        moved = z
        for _ in range(options.rounds):
            start = rounds[-1].centers if rounds else None
            centers, log_odds = _diverse_clusters(
                _unit(moved), codes, n_samples, n_states, start, options, rng
            )
            share = _responsibilities(moved, codes, centers, log_odds, options.width)
            by_state = Moments.by_group(z, codes, n_samples, share)
            effective = _effective_cells(share, codes, n_samples)
            shifts = strength * _state_shifts(
                by_state, effective, in_reference, options.prior_cells
            )
            rounds.append(Round(centers, log_odds, shifts))
            before, moved = moved, _shifted(z, codes, share, shifts)
            if _relative_change(before, moved) < 1e-3:
                break
        return cls(tuple(rounds), options.width)

    def apply(self, z: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Carry cells to the reference population.

        Parameters
        ----------
        z
            Embedding before the bridge, shape ``(cells, dims)``.
        codes
            Sample of each cell, as in `fit`.

        Returns
        -------
        numpy.ndarray
            Shape and dtype of `z`.  Each row depends on its own cell and sample alone.
        """
        return self._run(z, codes)[0]

    def states(self, z: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return each cell's share in each state, shape ``(cells, states)``, rows sum to 1."""
        return self._run(z, codes)[1]

    def _run(self, z: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved = z
        for step in self.rounds:
            share = _responsibilities(moved, codes, step.centers, step.log_odds, self.width)
            moved = _shifted(z, codes, share, step.shifts)
        return moved, share


def default_n_states(n_cells: int) -> int:
    """Return the number of states for so many cells: one per 30, between 1 and 100."""
    return int(np.clip(round(n_cells / 30), 1, 100))


def _diverse_clusters(
    unit: np.ndarray,
    codes: np.ndarray,
    n_samples: int,
    n_states: int,
    centers: np.ndarray | None,
    options: StateOptions,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster unit vectors softly, rewarding states in which the samples are mixed.

    Returns the centers and, per sample and state, ``theta * log(expected / observed)``.
    """
    if centers is None:
        seed = int(rng.integers(2**31))
        with warnings.catch_warnings():
            # Fewer distinct cells than states: some states then coincide, which does no harm.
            warnings.simplefilter("ignore", ConvergenceWarning)
            kmeans = KMeans(n_states, n_init=1, max_iter=25, random_state=seed).fit(unit)
        centers = _unit(kmeans.cluster_centers_)
    proportion = np.bincount(codes, minlength=n_samples) / len(codes)

    share = _softmax(2 * (unit @ centers.T - 1) / options.width)
    observed = sample_sums(share, codes, n_samples)  # samples x states
    before = np.inf
    n_blocks = min(20, len(unit))
    for _ in range(20):
        centers = _unit(share.T @ unit)
        closeness = 2 * (unit @ centers.T - 1) / options.width
        order = rng.permutation(len(unit))
        for block in np.array_split(order, n_blocks):
            observed -= sample_sums(share[block], codes[block], n_samples)
            odds = _log_odds(observed, proportion, options.diversity)
            share[block] = _softmax(closeness[block] + odds[codes[block]])
            observed += sample_sums(share[block], codes[block], n_samples)
        # Soft k-means objective with entropy and diversity terms (Korsunsky, equation 5).
        odds = _log_odds(observed, proportion, options.diversity)
        entropy = np.sum(share * np.log(share + 1e-12))
        objective = entropy - np.sum(share * closeness) - np.sum(observed * odds)
        if before - objective < 1e-4 * abs(objective):
            break
        before = objective
    return centers, _log_odds(observed, proportion, options.diversity)


def _log_odds(observed: np.ndarray, proportion: np.ndarray, diversity: float) -> np.ndarray:
    expected = proportion[:, None] * observed.sum(axis=0)
    odds: np.ndarray = diversity * np.log((expected + 1) / (observed.clip(0) + 1))
    return odds


def _state_shifts(
    by_state: Moments, effective: np.ndarray, in_reference: np.ndarray, prior_cells: float
) -> np.ndarray:
    """Estimate each sample's shift from the reference within each state; samples x states x dims.

    Ridge regression on the sample, weighted by the share in the state, whose intercept is the
    reference: a mean in which samples with many cells weigh the same.
    """
    trust = by_state.count / (by_state.count + prior_cells)  # samples x states
    weight = trust * in_reference[:, None]
    center = np.einsum("sk,skd->kd", weight, by_state.mean)
    center /= np.maximum(weight.sum(axis=0), 1e-12)[:, None]
    shift = by_state.mean - center
    # Share of the squared length beyond what sampling error alone would give it.
    within = by_state.m2.sum(axis=0) / np.maximum(by_state.count.sum(axis=0), 1e-12)[:, None]
    error2 = within / np.maximum(effective, 1)[..., None]
    scaled = np.square(shift) / np.maximum(error2, 1e-12)
    signal = 1 - shift.shape[-1] / np.maximum(scaled.sum(axis=-1), 1e-12)
    # Nothing leads to a reference that holds less than a cell of this state.
    there = (by_state.count * in_reference[:, None]).sum(axis=0)  # states
    trust = trust * np.minimum(there, 1)
    shrunk: np.ndarray = shift * (trust * signal.clip(0))[..., None]
    return shrunk


def _effective_cells(share: np.ndarray, codes: np.ndarray, n_samples: int) -> np.ndarray:
    """Return how many whole cells the shares are worth, samples x states (Kish 1965)."""
    total = sample_sums(share, codes, n_samples)
    square = sample_sums(share**2, codes, n_samples)
    effective: np.ndarray = total**2 / np.maximum(square, 1e-12)
    return effective


def sample_sums(share: np.ndarray, codes: np.ndarray, n_samples: int) -> np.ndarray:
    """Sum the rows of each sample, samples x states, in double precision."""
    cells = np.arange(len(codes))
    membership = sparse.csr_matrix((np.ones(len(codes)), (codes, cells)), (n_samples, len(codes)))
    sums: np.ndarray = membership @ share
    return sums


def _responsibilities(
    z: np.ndarray, codes: np.ndarray, centers: np.ndarray, log_odds: np.ndarray, width: float
) -> np.ndarray:
    return _softmax(2 * (_unit(z) @ centers.T - 1) / width + log_odds[codes])


def _shifted(z: np.ndarray, codes: np.ndarray, share: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    moved = np.empty_like(z)
    for sample in np.unique(codes):
        cells = codes == sample
        moved[cells] = z[cells] - share[cells] @ shifts[sample]
    return moved


def _relative_change(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.linalg.norm(after - before)) / max(float(np.linalg.norm(before)), 1e-12)


def _unit(x: np.ndarray) -> np.ndarray:
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit


def _softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(axis=1, keepdims=True))
    x /= x.sum(axis=1, keepdims=True)
    return x
