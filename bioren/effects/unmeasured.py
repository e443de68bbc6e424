"""Genes that a sample never measured, though its values say 0: an outer join filled with zeros.

A gene that is 0 in all cells of a sample and expressed in the same states of others has not been
measured there, or is not expressed at all, as those of the Y chromosome.  Either way there is
nothing to rescale, and to shift it would make expression out of nothing.  A rare gene without a
count in a small sample is none of these: zeros are to be expected of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.special import betaln

from bioren.arrays.groups import TINY
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import BoolSamplesByGenes, PerGene, PerState, StatesByGenes
from bioren.effects.state_profile import StateProfile
from bioren.wording import listed

__all__ = ["expected_there", "find_unmeasured", "warn_unmeasured"]

#: Zeros are improbable that have a probability below exp(-20), or 2e-9: of a gene that every tenth
#: cell of the others shows, in 190 cells.  In ten thousand genes of ten samples that is no chance.
IMPROBABLE = 20.0

#: Means below this share of those of other states are rounding.
ROUNDING = 1e-9

#: A sample that lacks so many of the genes, or of few genes this number, is warned of.  Fewer are
#: left alone without a word, as they may well not be expressed: CXCL11 without interferon, or the Y
#: chromosome's.  In public sets without other names of genes there are up to 8 of 9,015.
MANY, LEAST = 0.01, 2


def find_unmeasured(by_state: Moments, known: StateProfile | None = None) -> BoolSamplesByGenes:
    """Return which genes are 0 in all of a sample's cells where that is improbable.

    A gene is seen in a cell with a probability of at least ``(E x)**2 / E x**2`` (by the inequality
    of Cauchy and Schwarz), that of the other samples' cells in the same state.  Where a sample sees
    less of all genes than others do, it is expected to see less of each.

    Parameters
    ----------
    by_state
        Groups ``(samples, states)``, as measured.  Where values are missing (NaN), they say
        themselves what was not measured, and nothing is found.
    known
        A reference of which no sample is part; None: the other samples.
    """
    silent = ~(by_state.mean.any(axis=1) | by_state.m2.any(axis=1))  # samples x genes
    found = np.zeros_like(silent)
    if by_state.incomplete or not silent.any():
        return found
    if known is None:
        cells = np.einsum("sk,sg->kg", by_state.count, ~silent)
        rate = _rate(*_pooled(by_state, ~silent))
    else:
        cells = np.broadcast_to(known.by_state.count[:, None], known.by_state.mean.shape)
        rate = _rate(known.by_state.mean, known.by_state.var() + np.square(known.by_state.mean))
    for sample, of_sample in enumerate(silent):
        genes = np.flatnonzero(of_sample & (cells * rate).any(axis=0))
        if len(genes):
            here = by_state.count[sample]
            own = _rate(*_pooled(by_state[sample : sample + 1], ~of_sample[None]))
            seen, expected = (float((here @ of)[~of_sample].sum()) for of in (own, rate))
            some = rate[:, genes] * min(1.0, seen / max(expected, TINY))
            found[sample, genes] = _log_of_zeros(here, cells[:, genes], some) < -IMPROBABLE
    return found


def expected_there(by_state: Moments, unmeasured: BoolSamplesByGenes) -> Moments:
    """Return moments with what the others' cells in the same states lead to expect.

    It takes the place of what was not measured, so that this moves nothing in the reference.

    Parameters
    ----------
    by_state
        Groups ``(samples, states)``; not changed.
    unmeasured
        Which genes a sample never measured.
    """
    if not unmeasured.any():
        return by_state
    level, square = _pooled(by_state, ~unmeasured)
    variance = (square - level**2).clip(0)
    mean, m2 = by_state.mean.copy(), by_state.m2.copy()
    for sample, genes in enumerate(unmeasured):
        mean[sample][:, genes] = level[:, genes]
        m2[sample][:, genes] = variance[:, genes] * by_state.count[sample][:, None]
    return Moments(by_state.count, mean, m2)


def warn_unmeasured(
    names: Sequence[str], genes: Sequence[str], unmeasured: BoolSamplesByGenes
) -> None:
    """Warn of samples that never measured many genes, the one with most of them first."""
    lacking = unmeasured.sum(axis=1)
    if lacking.max(initial=0) < max(MANY * unmeasured.shape[1], LEAST):
        return
    order = [int(s) for s in np.argsort(-lacking, kind="stable") if lacking[s] > 0]
    told = listed((f"{lacking[s]:,} in {names[s]}" for s in order), 5)
    examples = listed((genes[g] for g in np.flatnonzero(unmeasured[order[0]]).tolist()), 3)
    msg = (
        f"{int(unmeasured.any(axis=0).sum()):,} of {len(genes):,} genes are 0 in all cells of a "
        f"sample and vary in the others, where zeros alone are improbable: {told} ({examples}). "
        "They look as if they had not been measured there, as after an outer join filled with "
        "zeros (or are not expressed at all, as those of the Y chromosome). They are left as they "
        "are in these samples, and do not count there; tl.batch_effects has n_measured = 0. To "
        "keep genes that all samples measured: anndata.concat(..., join='inner')."
    )
    warnings.warn(msg, stacklevel=3)


def _pooled(by_state: Moments, counted: BoolSamplesByGenes) -> tuple[StatesByGenes, StatesByGenes]:
    """Return mean and mean square in each state over the cells of the samples that count.

    A state in which none of them has cells has those of all states.
    """
    n_states, n_genes = by_state.mean.shape[1:]
    cells, total, square = (np.zeros((n_states, n_genes)) for _ in range(3))
    for sample, counts in enumerate(counted):
        n = by_state.count[sample][:, None] * counts
        mean = by_state.mean[sample]
        cells += n
        total += n * mean
        square += by_state.m2[sample] * counts + n * np.square(mean, dtype=np.float64)
    few = cells < 1
    found = []
    for of in (total, square):
        whole = of.sum(axis=0) / np.maximum(cells.sum(axis=0), TINY)
        found.append(np.where(few, whole, of / np.maximum(cells, TINY)))
    return found[0], found[1]


def _rate(mean: StatesByGenes, square: StatesByGenes) -> StatesByGenes:
    """Return in which share of the cells a gene is seen, at the least."""
    # What is left of rounding in a state without the gene is no expression.
    some = square > ROUNDING * square.max(axis=0, initial=0)
    return np.divide(mean**2, square, out=np.zeros_like(mean), where=some).clip(0, 1)


def _log_of_zeros(here: PerState, cells: StatesByGenes, rate: StatesByGenes) -> PerGene:
    """Return the log probability that a gene is 0 in all cells of a sample.

    The rate itself is known from so many cells, and from one more that has the gene's rate in all
    states: the beta-binomial law.  (Half a cell in each of many states would add up to a lot.)
    States without cells to compare with say nothing.
    """
    whole = ((cells * rate).sum(axis=0) + 0.5) / (cells.sum(axis=0) + 1)
    seen = cells * rate + whole
    unseen = cells * (1 - rate) + 1 - whole
    log = betaln(seen, unseen + here[:, None]) - betaln(seen, unseen)
    return np.where(cells >= 1, log, 0.0).sum(axis=0)
