"""Soft cell states shared by the samples, and the bridge per state and sample in an embedding.

States are found by maximum-diversity clustering and what differs between samples within a state
is shifted away, as in Harmony (Korsunsky et al. 2019, *Nature Methods* 16:1289, equations 3 to
13), with these differences:

* the target is a reference population in which each sample weighs the same, or the samples that
  the caller names;
* shifts are shrunk as far as their own standard errors explain them, so that samples without a
  batch effect stay as they are;
* a shift much longer than a sample's others leads from one cell type to another, and is left,
  unless the types are known;
* covariates such as a cell's depth are regressed out within states, whose own levels stay;
* known labels, of some cells or all, keep states from reaching over two labels;
* each iteration is stored as a pure function of a cell, what is known of it, and its sample.  The
  fitted bridge therefore gives a cell the same result alone, in any chunk and in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
from scipy.special import softmax

from bioren.arrays.blocks import Block, row_blocks
from bioren.arrays.groups import TINY, effective_cells, mixed
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import (
    BoolPerSample,
    CellsByCovariates,
    CellsByDims,
    CellsByStates,
    LabelCodes,
    PerCovariate,
    PerState,
    Positions,
    SampleCodes,
    SamplesByStates,
    SamplesByStatesByCovariates,
    SamplesByStatesByDims,
    StateCodes,
    StatesByCovariates,
    StatesByCovariatesByDims,
    StatesByDims,
)
from bioren.effects import constants
from bioren.effects.clusters import (
    StateOptions,
    allowed_states,
    default_n_states,
    diverse_clusters,
    first_centers,
    nearness,
    sketched,
    unit_vectors,
)
from bioren.effects.shifts import covariate_slopes, shifts_onto, state_shifts

__all__ = [
    "CellFacts",
    "ConditionalBridge",
    "Iteration",
    "Placed",
    "PlacedQuery",
    "StateOptions",
    "default_n_states",
    "frozen_states",
    "log_genes_detected",
]


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

    codes: SampleCodes
    covariates: CellsByCovariates | None = None
    labels: LabelCodes | None = None

    def of(self, cells: Positions | slice) -> CellFacts:
        """Return what is known of some cells."""
        covariates, labels = (
            None if fact is None else fact[cells] for fact in (self.covariates, self.labels)
        )
        return CellFacts(self.codes[cells], covariates, labels)


class Iteration(NamedTuple):
    """One iteration, frozen: enough to place any cell of a known sample.

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

    centers: StatesByDims
    log_odds: SamplesByStates
    shifts: SamplesByStatesByDims
    slopes: StatesByCovariatesByDims
    levels: SamplesByStatesByCovariates


class Placed(NamedTuple):
    """Cells in the reference population.

    Attributes
    ----------
    corrected
        Embedding from which everything that differs between samples is removed.
    share
        Each cell's share in each state, shape ``(cells, states)``, rows sum to 1.
    retained
        What is to stay of the samples' differences: ``corrected + retained`` is the result.
    sample_specific
        How far each cell lies from its states for no batch effect, shape ``(cells, dims)``.
    """

    corrected: CellsByDims
    share: CellsByStates
    retained: CellsByDims
    sample_specific: CellsByDims


class PlacedQuery(NamedTuple):
    """Cells of a sample that the bridge was not fitted on, placed in the reference population.

    Attributes
    ----------
    corrected, share, sample_specific
        As in `Placed`.
    shifts
        What was subtracted in each state, shape ``(states, dims)``.
    inlier_weight
        See `bioren.effects.shifts.Shifts`, shape ``(states,)``.
    """

    corrected: CellsByDims
    share: CellsByStates
    sample_specific: CellsByDims
    shifts: StatesByDims
    inlier_weight: PerState


@dataclass(frozen=True)
class ConditionalBridge:
    """Shifts per state and sample that carry an embedding to the reference population.

    Attributes
    ----------
    iterations
        The frozen iterations, in the order of their application.
    options
        How it was fitted, which holds for query samples as well.
    retained
        Of the last iteration's shifts, what is not removed; shape ``(samples, states, dims)``.
    sample_specific
        What is too unlike a sample's other shifts for a batch effect, of the same shape; see
        `bioren.effects.shifts.Shifts`.
    inlier_weight
        How far each shift is like the sample's others, in [0, 1], shape ``(samples, states)``.
    state_labels
        Label of each state, which no cell of another label joins, shape ``(states,)``; None: the
        model was fitted without labels.
    unit
        Unit of each covariate, its standard deviation within samples.
    """

    iterations: tuple[Iteration, ...]
    options: StateOptions
    retained: SamplesByStatesByDims
    sample_specific: SamplesByStatesByDims
    inlier_weight: SamplesByStates
    state_labels: StateCodes | None
    unit: PerCovariate

    @classmethod
    def fit(
        cls,
        z: CellsByDims,
        facts: CellFacts,
        n_samples: int,
        *,
        rng: np.random.Generator,
        in_reference: BoolPerSample | None = None,
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
            There are no cells, or `options` ask for no iteration.
        """
        options = options or StateOptions()
        _check_iterations(len(z), options.iterations)
        in_reference = np.ones(n_samples, dtype=bool) if in_reference is None else in_reference
        n_states = min(n_states or default_n_states(len(z)), len(z))
        unit = _within_sample_spread(facts, n_samples)
        covariates = _in_units(facts, unit)
        sketch = sketched(facts.codes, n_samples, rng, labels=facts.labels)
        known = facts.of(sketch)
        units = unit_vectors(z[sketch])
        centers, state_labels = first_centers(units, known.labels, n_states, rng=rng)
        allowed = allowed_states(facts.labels, state_labels)

        iterations: list[Iteration] = []
        moved = z
        for _ in range(options.iterations):
            centers, log_odds = diverse_clusters(
                unit_vectors(moved[sketch]),
                known.codes,
                n_samples,
                centers=centers,
                allowed=None if allowed is None else allowed[sketch],
                options=options,
                rng=rng,
            )
            share = _responsibilities(
                moved, facts.codes, centers, log_odds=log_odds, allowed=allowed, width=options.width
            )
            by_state = Moments.by_group(z, facts.codes, n_samples, share)
            shifts = state_shifts(
                by_state,
                effective_cells(share, facts.codes, n_samples),
                in_reference,
                options.prior_shift,
                of_one_type=state_labels is not None,
            )
            regression = covariate_slopes(
                z,
                covariates,
                facts.codes,
                share=share,
                by_state=by_state,
                prior_slope=options.prior_slope,
            )
            step = Iteration(centers, log_odds, shifts.batch_effect, *regression)
            iterations.append(step)
            before, moved = moved, _moved(z, facts.codes, covariates, share=share, step=step)
            if _relative_change(before, moved) < 1e-3:
                break
        return cls(
            tuple(iterations),
            options,
            (1 - strength) * iterations[-1].shifts,
            shifts.sample_specific,
            shifts.inlier_weight,
            state_labels,
            unit,
        )

    def limited(self, limit: Callable[[SamplesByStatesByDims], SamplesByStatesByDims]) -> Self:
        """Return the bridge that removes no more than ``limit(shifts)`` of what it removes now."""
        removed = self.iterations[-1].shifts - self.retained
        return replace(self, retained=self.iterations[-1].shifts - limit(removed))

    def removed_shift(self, share: CellsByStates, codes: SampleCodes) -> CellsByDims:
        """Return the shift that is removed from each cell, shape ``(cells, dims)``."""
        return mixed(share, codes, self.iterations[-1].shifts - self.retained)

    def apply(self, z: CellsByDims, facts: CellFacts) -> CellsByDims:
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
        return placed.corrected + placed.retained

    def states(self, z: CellsByDims, facts: CellFacts) -> CellsByStates:
        """Return each cell's share in each state, shape ``(cells, states)``, rows sum to 1."""
        return self._carried(z, facts)[1]

    def nearest(self, z: CellsByDims, states: Positions) -> CellsByStates:
        """Return shares in some states only, by closeness alone; ``(cells, some states)``."""
        centers = self.iterations[-1].centers[states]
        return softmax(nearness(unit_vectors(z), centers, self.options.width), axis=1)

    def place(self, z: CellsByDims, facts: CellFacts) -> Placed:
        """Return the embedding without what is to go, its states, and what is to stay."""
        moved, share = self._carried(z, facts)
        retained, specific = (
            mixed(share, facts.codes, table).astype(z.dtype)
            for table in (self.retained, self.sample_specific)
        )
        return Placed(moved, share, retained, specific)

    def _carried(self, z: CellsByDims, facts: CellFacts) -> tuple[CellsByDims, CellsByStates]:
        """Return the embedding without what is to go, and its states."""
        covariates = _in_units(facts, self.unit)
        allowed = allowed_states(facts.labels, self.state_labels)
        moved = z
        for step in self.iterations:
            share = _responsibilities(
                moved,
                facts.codes,
                step.centers,
                log_odds=step.log_odds,
                allowed=allowed,
                width=self.options.width,
            )
            moved = _moved(z, facts.codes, covariates, share=share, step=step)
        return moved, share

    def without_samples(self, states: Positions) -> Self:
        """Return what queries are placed by: some of the states, and no sample's shifts."""
        last = self.iterations[-1]
        only = Iteration(
            last.centers[states],
            last.log_odds[:0, states],
            last.shifts[:0, states],
            last.slopes[states],
            last.levels[:0, states],
        )
        nothing = only.shifts
        return replace(
            self,
            iterations=(only,),
            retained=nothing,
            sample_specific=nothing,
            inlier_weight=self.inlier_weight[:0, states],
            state_labels=None,
        )

    def place_query(
        self,
        z: CellsByDims,
        covariates: CellsByCovariates | None,
        reference: Moments,
    ) -> PlacedQuery:
        """Place a sample that the bridge was not fitted on.

        In turn its cells are assigned to the states, which stay where they are, and what then
        differs from the reference within each state is shifted away.

        Parameters
        ----------
        z
            Embedding of the sample's cells, shape ``(cells, dims)``.
        covariates
            As in `fit`.
        reference
            Groups ``(states,)``: the reference's cells in the corrected embedding, but for what
            is sample-specific.
        """
        one = np.zeros(len(z), dtype=np.intp)
        facts = CellFacts(one, covariates)
        covariates = _in_units(facts, self.unit)
        last = self.iterations[-1]
        even = np.zeros((1, len(last.centers)))
        moved = z
        options = self.options
        for _ in range(options.iterations):
            share = _responsibilities(
                moved, one, last.centers, log_odds=even, allowed=None, width=options.width
            )
            shifts = shifts_onto(z, share, reference, options.prior_shift)
            levels = _levels(covariates, share)[None]
            step = Iteration(last.centers, even, shifts.batch_effect[None], last.slopes, levels)
            before, moved = moved, _moved(z, one, covariates, share=share, step=step)
            if _relative_change(before, moved) < 1e-3:
                break
        specific = (share @ shifts.sample_specific).astype(z.dtype)
        return PlacedQuery(moved, share, specific, shifts.batch_effect, shifts.inlier_weight)


def log_genes_detected(x: Block) -> CellsByCovariates:
    """Return the first covariate of all cells: ``log(1 + number of genes detected)``.

    Parameters
    ----------
    x
        Log-expression in memory, shape ``(cells, genes)``.
    """
    detected = np.empty((x.shape[0], 1))
    for rows, block in row_blocks(x):  # `x != 0` of all would be as large as `x`
        detected[rows, 0] = np.asarray((block != 0).sum(axis=1)).ravel()
    return np.log1p(detected)


def frozen_states(centers: StatesByDims) -> ConditionalBridge:
    """Return states at fixed centroids, ``(states, dims)``, to place queries in; no samples."""
    n_states, dims = centers.shape
    only = Iteration(
        unit_vectors(centers),
        log_odds=np.zeros((0, n_states)),
        shifts=np.zeros((0, n_states, dims)),
        slopes=np.zeros((n_states, 0, dims)),
        levels=np.zeros((0, n_states, 0)),
    )
    nothing = only.shifts
    return ConditionalBridge(
        (only,), StateOptions(), nothing, nothing, only.log_odds, None, np.ones(0)
    )


def _check_iterations(n_cells: int, iterations: int) -> None:
    if n_cells == 0 or iterations < 1:
        msg = f"Expected cells and iterations, received {n_cells} cells, {iterations} iterations."
        raise ValueError(msg)


def _responsibilities(
    z: CellsByDims,
    codes: SampleCodes,
    centers: StatesByDims,
    *,
    log_odds: SamplesByStates,
    allowed: CellsByStates | None,
    width: float,
) -> CellsByStates:
    logits = nearness(unit_vectors(z), centers, width) + log_odds[codes].astype(z.dtype)
    return softmax(logits if allowed is None else logits + allowed, axis=1)


def _moved(
    z: CellsByDims,
    codes: SampleCodes,
    covariates: CellsByCovariates,
    *,
    share: CellsByStates,
    step: Iteration,
) -> CellsByDims:
    offset = mixed(share, codes, step.shifts - np.einsum("skc,kcd->skd", step.levels, step.slopes))
    for c in range(covariates.shape[1]):
        offset += covariates[:, [c]] * (share @ step.slopes[:, c])
    return (z - offset).astype(z.dtype)


def _levels(covariates: CellsByCovariates, share: CellsByStates) -> StatesByCovariates:
    """Return a sample's covariate means by state; few cells take the level of all of them."""
    count = share.sum(axis=0, dtype=np.float64)[:, None]
    level = covariates.mean(axis=0)
    prior = constants.PRIOR_CELLS
    return (share.T @ covariates + prior * level) / (count + prior)


def _within_sample_spread(facts: CellFacts, n_samples: int) -> PerCovariate:
    if facts.covariates is None:
        return np.ones(0)
    moments = Moments.by_group(facts.covariates, facts.codes, n_samples)
    spread = np.sqrt(moments.m2.sum(axis=0) / len(facts.codes))
    return np.where(spread > 0, spread, 1.0)


def _in_units(facts: CellFacts, unit: PerCovariate) -> CellsByCovariates:
    given = np.zeros((len(facts.codes), 0)) if facts.covariates is None else facts.covariates
    if given.shape[1] != len(unit):
        msg = f"Fitted with {len(unit)} covariates, received {given.shape[1]}."
        raise ValueError(msg)
    return given / unit


def _relative_change(before: CellsByDims, after: CellsByDims) -> float:
    return float(np.linalg.norm(after - before)) / max(float(np.linalg.norm(before)), TINY)
