"""States and the standardized bridge, found together.

States improve the bridge, because it then compares like with like; the bridge improves the
states, because they are sought where the samples overlap.  Two iterations settle both.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bioren.arrays.blocks import Block, gather_rows, row_blocks, stacked
from bioren.arrays.components import Projection
from bioren.arrays.groups import TINY, sample_sums
from bioren.arrays.missing import filled
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import (
    BoolPerSample,
    BoolSamplesByGenes,
    CellsByStates,
    PerGene,
    PerSample,
    Positions,
    SampleCodes,
    SamplesByGenes,
)
from bioren.arrays.survey import Survey
from bioren.arrays.threads import with_one_blas_thread
from bioren.bridge import AffineBridge, kept_terms, renorm_terms, shrinkage
from bioren.effects import constants
from bioren.effects.clusters import sketched
from bioren.effects.errors import variance_of_squares
from bioren.effects.standardization import Standardized, overlap_of, standardize
from bioren.effects.state_profile import TABLE_ENTRIES
from bioren.effects.states import CellFacts, ConditionalBridge, default_n_states
from bioren.effects.unmeasured import expected_there, find_unmeasured

__all__ = [
    "MAX_REMOVED",
    "Alignment",
    "Removal",
    "align",
    "compare",
    "isolation_messages",
    "warn_isolated",
]

#: By default no gene is rescaled more than twofold, and shifts have no limit.
MAX_REMOVED = (constants.MAX_RATIO, math.inf)


class Removal(NamedTuple):
    """How much of the samples' differences is removed; see `bioren.bridge.kept_terms`.

    Attributes
    ----------
    strength
        Share that is removed, in [0, 1].
    max_kept, max_removed
        Limits ``(r_max, d_max)`` on what stays and on what is taken away.  By default no gene
        is rescaled more than twofold: beyond, the ratio says more about dropout than scale.
    """

    strength: float = 1.0
    max_kept: tuple[float, float] | None = None
    max_removed: tuple[float, float] | None = MAX_REMOVED

    @property
    def d_max(self) -> float:
        """Return how many standard deviations a gene may be moved by."""
        return math.inf if self.max_removed is None else self.max_removed[1]


class Alignment(NamedTuple):
    """The batch effect of each sample on each gene, and the bridge that removes it.

    Attributes
    ----------
    r, d
        The samples' spread and mean against the reference's, standardized to its composition:
        ``r = sd_sample / sd_reference``, ``d = (mean_sample - mean_reference) / sd_reference``;
        shape ``(samples, genes)``.
    standard_error_r, standard_error_d
        Of `r` and of `d`, see `with_errors`; infinite where values are missing and a gene cannot be
        compared, and where a sample never measured it (`bioren.effects.unmeasured`).
    scales_states
        How far `r` holds for the differences between a sample's states, in [0, 1], ``(samples,)``:
        `r` to this power is what can be removed; see
        `bioren.effects.standardization.Standardized`.
    overlap
        How far each sample and others live in the same states, ``(samples,)``; see
        `bioren.effects.standardization.overlap_of`.
    overlap_before
        The same before anything is corrected.
    removed
        Share of `d` that the bridge removes.
    samples, reference
        The moments between which `full` leads (`filled`, where a gene was never measured): the
        sample's after shrinkage.
    bridges
        One per sample, shape ``(samples, genes)``: ``bridges[s].apply(x)``.
    full
        The same if all that is certain were removed, whatever strength and limits say: where
        samples are compared in `full`, what is kept of an effect does not hide the states.
    """

    r: SamplesByGenes
    d: SamplesByGenes
    standard_error_r: SamplesByGenes
    standard_error_d: SamplesByGenes
    scales_states: PerSample
    overlap: PerSample
    overlap_before: PerSample
    removed: SamplesByGenes
    samples: Moments
    reference: Moments
    bridges: AffineBridge
    full: AffineBridge

    @property
    def unmeasured(self) -> BoolSamplesByGenes:
        """Return which genes a sample never measured, though its values say 0."""
        if self.samples.incomplete:  # NaN say it
            return np.zeros(self.r.shape, dtype=bool)
        return np.isinf(self.standard_error_d)

    @property
    def filled(self) -> AffineBridge:
        """Return `full` for embeddings: what was never measured lies at the reference's mean."""
        unmeasured = self.unmeasured
        if not unmeasured.any():
            return self.full
        shift = np.where(unmeasured, self.reference.mean, self.full.shift)
        return AffineBridge(self.full.scale, shift)

    def left_alone(self, unmeasured: BoolSamplesByGenes) -> Alignment:
        """Return the same with genes that samples never measured left there as they are.

        Their r is 1, their d 0, and the errors of both are infinite: nothing is known of them.
        """
        if not unmeasured.any():
            return self

        def put(table: SamplesByGenes, value: float | PerGene) -> SamplesByGenes:
            return np.where(unmeasured, value, table)

        samples = self.samples
        spread = samples.count_per_gene * self.reference.var()
        return self._replace(
            r=put(self.r, 1.0),
            d=put(self.d, 0.0),
            standard_error_r=put(self.standard_error_r, np.inf),
            standard_error_d=put(self.standard_error_d, np.inf),
            removed=put(self.removed, 0.0),
            # From 0 to the reference's mean, where cells are embedded.
            samples=Moments(
                samples.count, put(samples.mean, 0.0), np.where(unmeasured, spread, samples.m2)
            ),
            bridges=AffineBridge(put(self.bridges.scale, 1.0), put(self.bridges.shift, 0.0)),
            full=AffineBridge(put(self.full.scale, 1.0), put(self.full.shift, 0.0)),
        )

    def of_genes(self, index: Positions) -> Alignment:
        """Return what is known of some genes."""
        by_gene = ("r", "d", "standard_error_r", "standard_error_d", "removed", "bridges", "full")
        some: dict[str, Any] = {name: getattr(self, name)[:, index] for name in by_gene}
        samples, reference = self.samples.of_genes(index), self.reference.of_genes(index)
        return self._replace(samples=samples, reference=reference, **some)

    def with_errors(self, variance: PerGene) -> Alignment:
        """Return the same with standard errors for values that are not normal.

        By the delta method, the standard deviation of n cells has the relative squared error
        ``variance / (4 n)``; `r` has those of both sides, and `d` that of its unit.

        Parameters
        ----------
        variance
            Relative variance of squared deviations, shape ``(genes,)``; see
            `bioren.effects.errors.variance_of_squares`.
        """
        of_unit, of_sample = (
            variance / (4 * np.maximum(of.count_per_gene, TINY))
            for of in (self.reference, self.samples)
        )
        error_d = np.sqrt(self.standard_error_d**2 + self.d**2 * of_unit)
        error_r = self.r * np.sqrt(of_sample + of_unit)
        return self._replace(
            standard_error_r=np.where(np.isfinite(error_d), error_r, np.inf),
            standard_error_d=error_d,
        )


@with_one_blas_thread
def align(
    x: Any,
    facts: CellFacts,
    n_samples: int,
    *,
    rng: np.random.Generator,
    variable: tuple[Any, Positions] | None = None,
    in_reference: BoolPerSample | None = None,
    removal: Removal | None = None,
    n_components: int = 30,
    iterations: int = 2,
    survey: Survey | None = None,
) -> Alignment:
    """Find the standardized bridge of every sample.

    Parameters
    ----------
    x
        Expression on a log scale, shape ``(cells, genes)``, any kind that `row_blocks` reads.
        NaN stands for a value that was not measured; where states are sought, and only there,
        the sample's mean of the gene takes its place.
    facts
        Sample of each cell, in ``range(n_samples)``, each having a cell; and what labels there
        are.  Covariates play no part.
    n_samples
        Number of samples.
    rng
        Source of randomness.
    variable
        The genes in which states are sought, as ``(matrix, indices)``: their part of `x` and
        their columns in it.  None: all genes.
    in_reference
        Which samples make up the reference, boolean of shape ``(samples,)``; None: all.
    removal
        How much is removed; None: the defaults of `Removal`.
    n_components
        Principal components in which states are sought.
    iterations
        Number of iterations of states and bridge; 0 compares the samples as they are, whatever
        their composition.
    survey
        What is known of `x` and needs no pass over it any more; None: nothing.
    """
    removal = removal or Removal()
    facts = facts._replace(covariates=None)
    codes = facts.codes
    whole = Moments.by_group(x, codes, n_samples) if survey is None else survey.whole
    plain, alignment = _compared(whole[:, None], in_reference, removal)
    sketch, x_of_sketch = _sketch(x, facts, n_samples, rng=rng, survey=survey)

    def with_errors(standardized: Standardized, share: CellsByStates) -> Alignment:
        variance = variance_of_squares(
            x_of_sketch,
            codes[sketch],
            share[sketch],
            bridges=alignment.full,
            profile=standardized.profile,
        )
        return alignment.with_errors(variance)

    if iterations == 0:
        return with_errors(plain, np.ones((len(codes), 1)))
    some, genes = variable or (x, np.arange(x.shape[1]))
    if whole.incomplete:
        some, genes = _without_missing(some, genes, codes, whole=whole, onto=alignment.reference)
    seen = gather_rows(some, sketch)
    n_states = max(1, min(default_n_states(len(codes)), TABLE_ENTRIES // max(1, whole.mean.size)))

    def state_shares(bridges: AffineBridge) -> CellsByStates:
        center = alignment.reference.mean[genes]
        projection = Projection.fit(
            seen, codes[sketch], bridges, center=center, n_components=n_components, rng=rng
        )
        z = projection.apply(some, codes, bridges)
        states = ConditionalBridge.fit(
            z[sketch],
            facts.of(sketch),
            n_samples,
            rng=rng,
            in_reference=in_reference,
            n_states=n_states,
        )
        return states.states(z, facts)

    # States are first sought in expression as it is, which tells types from samples.  Where an
    # effect is so strong that a sample is isolated, its plain moments are matched before.
    match = alignment.filled[:, genes]
    nothing = AffineBridge.identity(*match.scale.shape)
    share = state_shares(nothing)
    overlap_before = overlap_of(sample_sums(share, codes, n_samples))
    isolated = (overlap_before < constants.ISOLATED)[:, None]
    if isolated.any():
        start = AffineBridge(
            np.where(isolated, match.scale, 1.0), np.where(isolated, match.shift, 0.0)
        )
        share = state_shares(start)

    for turn in range(iterations):
        if turn > 0:
            share = state_shares(alignment.filled[:, genes])
        # The last turn alone compares all cells: before, the bridge serves to find states.
        last = turn == iterations - 1
        cells = np.arange(len(codes)) if last else sketch
        by_state = Moments.by_group(
            x if last else x_of_sketch, codes[cells], n_samples, share[cells]
        )
        standardized, alignment = _compared(by_state, in_reference, removal)
    return with_errors(standardized, share)._replace(overlap_before=overlap_before)


def _sketch(
    x: Any,
    facts: CellFacts,
    n_samples: int,
    *,
    rng: np.random.Generator,
    survey: Survey | None,
) -> tuple[Positions, Block]:
    """Return the cells among which states are sought, and their expression of all genes."""
    if survey is not None:
        return survey.sketch, survey.of_sketch
    sketch = sketched(facts.codes, n_samples, rng, labels=facts.labels)
    return sketch, gather_rows(x, sketch)


def _compared(
    by_state: Moments, in_reference: BoolPerSample | None, removal: Removal
) -> tuple[Standardized, Alignment]:
    """Compare samples within states; what one never measured does not count and is left alone."""
    unmeasured = find_unmeasured(by_state)
    standardized = standardize(expected_there(by_state, unmeasured), in_reference)
    return standardized, compare(standardized, removal).left_alone(unmeasured)


def _without_missing(
    some: Any, genes: Positions, codes: SampleCodes, *, whole: Moments, onto: Moments
) -> tuple[Block, Positions]:
    """Return in what states are sought where values are missing: a matrix and its genes.

    The sample's mean stands for a missing value, or the reference's if the sample has none.  A
    gene that the reference lacks would tell samples apart, not states, and is left out.
    """
    known = np.flatnonzero(onto.count[genes] > 0)
    there = stacked(block[:, known] for _, block in row_blocks(some))
    mean = np.where(whole.count > 0, whole.mean, onto.mean)
    return filled(there, codes, mean[:, genes[known]]), genes[known]


def warn_isolated(names: Sequence[str], alignment: Alignment) -> None:
    """Warn of samples that have hardly a cell state in common with the others.

    Parameters
    ----------
    names
        The samples.
    alignment
        What `align` found.
    """
    if len(names) == 1:
        return  # a reference by itself: nothing is compared
    for msg in isolation_messages(names, alignment.overlap, alignment.overlap_before):
        warnings.warn(msg, stacklevel=3)


def isolation_messages(
    names: Sequence[str], overlap: PerSample, overlap_before: PerSample
) -> list[str]:
    """Say which samples have hardly a cell state in common with the others; see `Alignment`."""

    def below(least: float, overlap: PerSample) -> list[str]:
        return [str(name) for name, share in zip(names, overlap, strict=True) if share < least]

    def message(which: list[str], consequence: str) -> str:
        return (
            f"{len(which)} of {len(names)} samples have hardly a cell state in common with the "
            f"others: {', '.join(which[:8])}{', ...' if len(which) > 8 else ''}. {consequence}"
        )

    never = below(constants.MIN_OVERLAP, overlap)
    at_first = [name for name in below(constants.ISOLATED, overlap_before) if name not in never]
    messages = []
    if never:
        messages.append(
            message(
                never,
                "Their batch effect cannot be told from their composition, so their expression is "
                "left as it is.",
            )
        )
    if at_first:
        messages.append(
            message(
                at_first,
                "Their plain moments were matched before comparing states. If their cell types "
                "differ from the others', that difference is lost with the batch effect: look at "
                "known markers, or leave these samples out.",
            )
        )
    return messages


def compare(standardized: Standardized, removal: Removal) -> Alignment:
    """Derive effect and bridge from comparable moments, each gene as far as it is certain.

    What the bridge removes, r and d after shrinkage and limits, is expressed as moments again:
    those from which the plain bridge to the reference leaves the sample ``r_kept`` and
    ``d_kept``.
    """
    samples, reference, error, scales_states, overlap, _ = standardized
    spread = reference.std() + (reference.std() == 0)  # a constant gene is compared in its units
    spread_there = np.where(samples.std() > 0, samples.std(), spread)
    r, d = renorm_terms(samples.mean, spread_there, reference.mean, spread)
    trust = shrinkage(d, error / spread)
    # A line through all cells scales the differences between states as well: of r only what holds
    # for these is removed.
    removable = r ** scales_states[:, None]

    def kept(strength: SamplesByGenes, removal: Removal) -> tuple[SamplesByGenes, SamplesByGenes]:
        return kept_terms(
            removable,
            d,
            max_kept=removal.max_kept,
            max_removed=removal.max_removed,
            strength=strength,
        )

    def source_of(r_kept: SamplesByGenes, d_kept: SamplesByGenes) -> Moments:
        mean = samples.mean - spread * d_kept * (removable / r_kept)
        variance = reference.var() * (removable / r_kept) ** 2
        return Moments(samples.count, mean, samples.count_per_gene * variance)

    r_kept, d_kept = kept(removal.strength * trust, removal)
    # All of it, within the usual limit on r or a wider one that was asked for.
    asked = removal.max_removed
    widest = None if asked is None else (max(MAX_REMOVED[0], asked[0]), math.inf)
    everything = source_of(*kept(trust, Removal(max_removed=widest)))
    n, n_reference = (np.maximum(of.count_per_gene, TINY) for of in (samples, reference))
    of_normal = (1 / n + 1 / n_reference) / 2
    return Alignment(
        r=r,
        d=d,
        standard_error_r=np.where(np.isfinite(error), r * np.sqrt(of_normal), np.inf),
        standard_error_d=error / spread,
        scales_states=scales_states,
        overlap=overlap,
        overlap_before=overlap,
        removed=np.divide(d - d_kept, d, out=np.zeros_like(d), where=d != 0),
        samples=everything,
        reference=reference,
        bridges=AffineBridge.between(source_of(r_kept, d_kept), reference),
        full=AffineBridge.between(everything, reference),
    )
