"""Signs of over-correction, that what was removed was not the batch effect but biology.

A batch effect that shifts all cells of a sample alike leaves the sample's own structure as it was.
What changes that structure, rescaled genes and shifts that differ between states, may be biology.
Nothing of this can prove a mistake; it says where to look.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from scipy.stats import entropy

from bioren.arrays.shapes import (
    CellsByDims,
    CountPerSample,
    LabelCodes,
    PerSample,
    SampleCodes,
    SamplesByStates,
)
from bioren.wording import listed

__all__ = [
    "ConditionDesign",
    "Diagnosis",
    "confounded_message",
    "confounding",
    "sample_specific",
    "structure_message",
    "structure_removed",
    "unmatched",
    "warn_structure",
]

#: A sample that loses more than this share of its own structure is warned of.  Random halves of
#: one sample lose less than .001; samples of five technologies, or of two studies, up to .09.
MAX_STRUCTURE = 0.25

#: Samples of fewer cells have little structure of their own.
MIN_CELLS = 30

#: A sample has a state for itself if the others hold less than this share of what even mixing
#: would give them.
UNMATCHED = 0.1

#: A condition that the batches determine to this degree is confounded with them.
CONFOUNDED = 0.5


class Diagnosis(NamedTuple):
    """What is known of each sample's correction; each of shape ``(samples,)``.

    Attributes
    ----------
    overlap_before, overlap
        How far the sample and others live in the same states, before correction and in the last
        comparison of samples, which is made between corrected genes; see
        `bioren.effects.standardization.overlap_of`.
    unmatched
        Share of the sample in states of the embedding that no other sample shares, after
        correction.
    sample_specific
        Share of the sample whose shift within its states is outlying, too long for a batch effect,
        and was taken for sample-specific; see `bioren.effects.shifts.Shifts`.
    structure_removed
        How much the correction changed the sample's own structure, relative to its own variance
        in the embedding; a shift of all cells alike changes nothing.
    """

    overlap_before: PerSample
    overlap: PerSample
    unmatched: PerSample
    sample_specific: PerSample
    structure_removed: PerSample


def unmatched(count: SamplesByStates) -> PerSample:
    """Return the share of each sample in states that it has for itself, shape ``(samples,)``.

    Parameters
    ----------
    count
        Cells by sample and state, shape ``(samples, states)``.
    """
    cells = np.maximum(count.sum(axis=1, keepdims=True), 1e-12)
    others = count.sum(axis=0) - count
    expected = count.sum(axis=0) * (1 - cells / cells.sum())
    return (count / cells * (others < UNMATCHED * expected)).sum(axis=1)


def sample_specific(count: SamplesByStates, inlier_weight: SamplesByStates) -> PerSample:
    """Return the share of each sample that is sample-specific within its states, ``(samples,)``.

    Parameters
    ----------
    count
        Cells by sample and state, shape ``(samples, states)``.
    inlier_weight
        How far each shift is like the sample's others, of the same shape, in [0, 1].
    """
    return (count * (1 - inlier_weight)).sum(axis=1) / np.maximum(count.sum(axis=1), 1e-12)


def structure_removed(
    before: CellsByDims, after: CellsByDims, codes: SampleCodes, *, n_samples: int
) -> PerSample:
    """Return how much of each sample's own structure a correction changed.

    ``sum |(x - mean) - (x' - mean')|**2 / sum |x - mean|**2`` over the sample's cells, x before
    and x' after; 0 for a shift alike in all cells, 1 where all cells end in one place, more where
    structure that was not there is added.

    Parameters
    ----------
    before, after
        Embeddings of the same cells along the same axes, shape ``(cells, dims)``.
    codes
        Sample of each cell.
    n_samples
        Number of samples; the result has shape ``(n_samples,)``.
    """
    removed = np.zeros(n_samples)
    for sample in np.unique(codes):
        cells = codes == sample
        own = before[cells] - before[cells].mean(axis=0, dtype=np.float64)
        change = before[cells] - after[cells]
        change = change - change.mean(axis=0, dtype=np.float64)
        removed[sample] = np.square(change).sum() / max(float(np.square(own).sum()), 1e-12)
    return removed


def confounding(codes: SampleCodes, condition: LabelCodes) -> float:
    """Return how far samples determine a condition, from 0, not at all, to 1, fully.

    Theil's uncertainty coefficient: the share of the condition's entropy that is gone once the
    sample is known.  Cells without a condition (-1) do not count.
    """
    known = condition >= 0
    table = np.zeros((codes.max(initial=0) + 1, condition.max(initial=0) + 1))
    np.add.at(table, (codes[known], condition[known]), 1)
    if not table.any():
        return 0.0
    whole = entropy(table.sum(axis=0))
    if whole == 0:
        return 0.0
    weight = table.sum(axis=1) / table.sum()
    left = sum(w * entropy(row) for w, row in zip(weight, table, strict=True) if w > 0)
    return float(1 - left / whole)


class ConditionDesign(NamedTuple):
    """How samples and a condition go together.

    Attributes
    ----------
    degree
        How far samples determine the condition, see `confounding`.
    nested
        Whether each sample has one condition only.
    samples
        Number of samples of each condition, shape ``(conditions,)``; conditions that occur.
    one_condition
        Number of samples that have one condition only.
    """

    degree: float
    nested: bool
    samples: np.ndarray
    one_condition: int

    @classmethod
    def of(cls, codes: SampleCodes, condition: LabelCodes) -> Self:
        """Look at the cells that have a condition."""
        known = condition >= 0
        pairs = np.unique(np.stack([codes[known], condition[known]]), axis=1)
        n_conditions = np.unique(pairs[0], return_counts=True)[1]  # of each sample
        samples = np.unique(pairs[1], return_counts=True)[1]
        single = int((n_conditions == 1).sum())
        nested = len(samples) > 1 and single == len(n_conditions)
        return cls(confounding(codes, condition), nested, samples, single)

    @property
    def identical(self) -> bool:
        """Return whether each condition is one sample."""
        return self.nested and bool((self.samples == 1).all())


def confounded_message(batch: str, condition: str, design: ConditionDesign) -> str:
    """Say that a condition is confounded with the samples; nothing where it is not.

    Parameters
    ----------
    batch, condition
        What they are called, such as ``"obs['sample']"``.
    design
        How they go together: each condition is one sample, samples are nested in conditions, or
        the two are partly confounded.
    """
    test = (
        "Test for the condition's effect on counts summed by sample (pseudobulk), in a design with "
        "the condition (limma, edgeR, DESeq2), not in corrected expression."
    )
    if design.identical:
        same = batch == condition
        begin = (
            f"The condition is the batch itself, {batch}: "
            if same
            else f"{condition} and {batch} divide the cells alike, each condition is one sample: "
        )
        return (
            f"{begin}what differs between conditions is what differs between samples, and all of "
            "it is removed. No method can tell them apart. Take as the batch what holds cells of "
            "several conditions, such as the run or the donor (batch_key=...), or name control "
            "cells that every sample has (controls_key=...). If there is neither, do not correct."
        )
    if design.nested:
        least, most = int(design.samples.min()), int(design.samples.max())
        each = f"{least}" if least == most else f"{least} to {most}"
        return (
            f"The samples of {batch} are nested in {condition}: each has one condition, and each "
            f"condition {each} samples. As differences between samples are removed, so is what "
            "their conditions differ by in a gene on average; composition and cell types stay. To "
            "keep it, take as the batch what holds several conditions, such as the run "
            "(batch_key=...), name control cells that every sample has (controls_key=...), or "
            f"remove less (strength=..., max_removed=(r, d)). {test} The samples are its "
            "replicates."
        )
    if design.degree < CONFOUNDED:
        return ""
    return (
        f"{condition} is partly confounded with {batch}, which determines it to "
        f"{design.degree:.0%} ({design.one_condition} samples have one condition only): part of "
        "what differs between conditions is removed with the batch effect. Name control cells that "
        "every sample has (controls_key=...), remove less (strength=..., max_removed=(r, d)), or "
        "take a batch key that crosses the conditions. Test for the condition's effect in "
        "uncorrected expression, with the batch as a covariate."
    )


def warn_structure(names: Sequence[str], removed: PerSample, cells: CountPerSample) -> None:
    """Warn of samples whose own structure the correction changed a lot; tiny ones have none."""
    if msg := structure_message(names, removed, cells):
        warnings.warn(msg, stacklevel=4)


def structure_message(names: Sequence[str], removed: PerSample, cells: CountPerSample) -> str:
    """Say whose structure the correction changed a lot; nothing where it did so to no sample."""
    changed = [
        f"{name} ({share:.0%})"
        for name, share, n_cells in zip(names, removed, cells, strict=True)
        if share > MAX_STRUCTURE and n_cells >= MIN_CELLS
    ]
    if not changed:
        return ""
    return (
        f"The correction changed much of the structure that these samples have by themselves: "
        f"{listed(changed)}. This may be over-correction: compare known markers before and "
        "after, or remove less (strength=..., max_removed=(r, d))."
    )
