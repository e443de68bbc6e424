"""How large each sample's batch effect is, which samples stand out, what the limits cut off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import median_abs_deviation

from bioren.arrays.shapes import (
    BoolPerSample,
    ByGenes,
    CountPerSample,
    PerSample,
    SamplesByGenes,
)
from bioren.bridge import kept_terms, mean_of_known, shrinkage
from bioren.effects import constants
from bioren.wording import listed

__all__ = ["EffectSizes", "beyond_chance", "clipped", "effect_sizes", "outlier_message"]

#: A sample stands out so many robust standard deviations above the median.
FAR = 3.0

#: The robust standard deviation counts as at least this share of the median, and at least this
#: much: among samples that are nearly alike, a trifle would stand out otherwise.
MIN_SHARE, MIN_SPREAD = 0.1, 0.02

#: The size of a sample of few cells is uncertain: between random parts of one sample, of 20 to 500
#: cells, the mean squared effect scatters by so much of the mean squared error, as genes go
#: together (that of log2 r by .12 to .22, and is too large by .1 to .3 below 100 cells).
UNCERTAIN = 0.2

#: Among fewer samples it cannot be said which of them stands out.
MIN_SAMPLES = 4


class EffectSizes(NamedTuple):
    """The size of each sample's effect over all genes.

    Attributes
    ----------
    shift
        Root mean square of d beyond its error, in standard deviations of the reference, shape
        ``(samples,)``.
    scale
        The same of ``log2(r)``: 1 is a spread that is doubled or halved.
    far_shift, far_scale
        Where each sample begins to stand out, ``(samples,)``: at 3 robust standard deviations
        (1.4826 times the median absolute deviation) above the samples' median, and farther for a
        sample of few cells, whose size is uncertain; infinite among fewer than four.
    """

    shift: PerSample
    scale: PerSample
    far_shift: PerSample
    far_scale: PerSample

    @property
    def outlier(self) -> BoolPerSample:
        """Return which samples stand out, by shift or scale."""
        return (self.shift > self.far_shift) | (self.scale > self.far_scale)


def effect_sizes(
    r: SamplesByGenes, d: SamplesByGenes, error_r: SamplesByGenes, *, error_d: SamplesByGenes
) -> EffectSizes:
    """Measure each sample's effect.

    Squared errors are subtracted from the squares, so that random parts of one sample have a
    size near 0, however few their cells.  Genes with an infinite error do not count.

    Parameters
    ----------
    r, d, error_r, error_d
        Effects and their standard errors, shape ``(samples, genes)``.
    """
    log2_r, error_log2_r = np.log2(r), error_r / r / np.log(2)
    shift, scale = _size(d, error_d), _size(log2_r, error_log2_r)
    return EffectSizes(shift, scale, _far(shift, error_d), _far(scale, error_log2_r))


def outlier_message(names: Sequence[str], cells: CountPerSample, sizes: EffectSizes) -> str:
    """Say which samples stand out, by what value and beyond which limit; nothing if none does."""
    told = []
    for i in np.flatnonzero(sizes.outlier).tolist():
        of = [
            f"{name} {size[i]:.2f}, limit {far[i]:.2f}"
            for name, size, far in (
                ("shift", sizes.shift, sizes.far_shift),
                ("scale", sizes.scale, sizes.far_scale),
            )
            if size[i] > far[i]
        ]
        told.append(f"{names[i]} ({cells[i]:,} cells: {'; '.join(of)})")
    if not told:
        return ""
    return (
        f"{len(told)} of {len(names)} samples stand out, with a far larger batch effect than the "
        f"others: {listed(told)}. The limit lies three robust standard deviations above the median "
        "of the samples, and farther for samples of few cells. Look at their quality (genes and "
        "UMIs per cell, mitochondrial share) before using them."
    )


def beyond_chance(d: ByGenes, error_d: ByGenes) -> ByGenes:
    """Return by how much ``|d|`` exceeds two standard errors, 0 where it does not."""
    return (np.abs(d) - constants.STANDARD_ERRORS * error_d).clip(0)


def clipped(
    r: SamplesByGenes, d: SamplesByGenes, error_d: SamplesByGenes, *, settings: Mapping[str, Any]
) -> tuple[PerSample, PerSample]:
    """Return the share of each sample's genes whose r, and whose d, `max_removed` held back.

    Parameters
    ----------
    r, d, error_d
        Effects and the standard error of `d`, shape ``(samples, genes)``.
    settings
        ``strength``, ``max_removed``, ``max_kept``, as they were given; a missing limit is none.
    """
    strength = settings.get("strength", 1.0) * shrinkage(d, error_d)
    max_kept, limits = (
        None if settings.get(name) is None else (float(settings[name][0]), float(settings[name][1]))
        for name in ("max_kept", "max_removed")
    )
    with_limits, without = (
        kept_terms(r, d, max_kept=max_kept, max_removed=given, strength=strength)
        for given in (limits, None)
    )
    of_r, of_d = (
        ~np.isclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(with_limits, without, strict=True)
    )
    return of_r.mean(axis=1), of_d.mean(axis=1)


def _size(effect: SamplesByGenes, error: SamplesByGenes) -> PerSample:
    square = np.square(effect, dtype=np.float64) - np.square(error, dtype=np.float64)
    return np.sqrt(mean_of_known(square, np.isfinite(error))[:, 0].clip(0))


def _far(size: PerSample, error: SamplesByGenes) -> PerSample:
    """Return where each sample begins to stand out.  Squares add up, as those of sizes do."""
    if len(size) < MIN_SAMPLES:
        return np.full(len(size), np.inf)
    median = float(np.median(size))
    spread = float(median_abs_deviation(size, scale="normal"))
    far = median + FAR * max(spread, MIN_SHARE * median, MIN_SPREAD)
    squared = mean_of_known(np.square(error, dtype=np.float64), np.isfinite(error))[:, 0]
    return np.sqrt(far**2 + FAR * UNCERTAIN * squared)
