"""How large each sample's batch effect is, which samples stand out, what the limits cut off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import median_abs_deviation

from bioren.arrays.shapes import BoolPerSample, ByGenes, PerSample, SamplesByGenes
from bioren.bridge import kept_terms, mean_of_known, shrinkage
from bioren.effects import constants

__all__ = ["EffectSizes", "beyond_chance", "clipped", "effect_sizes"]

#: A sample stands out so many robust standard deviations above the median.
FAR = 3.0

#: The robust standard deviation counts as at least this share of the median, and at least this
#: much: among samples that are nearly alike, a trifle would stand out otherwise.
MIN_SHARE, MIN_SPREAD = 0.1, 0.02

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
        Where a sample begins to stand out: at 3 robust standard deviations (1.4826 times the
        median absolute deviation) above the samples' median; infinite among fewer than four.
    """

    shift: PerSample
    scale: PerSample
    far_shift: float
    far_scale: float

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
    shift = _size(d, error_d)
    scale = _size(np.log2(r), error_r / r / np.log(2))
    return EffectSizes(shift, scale, _far(shift), _far(scale))


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


def _far(size: PerSample) -> float:
    if len(size) < MIN_SAMPLES:
        return float("inf")
    median = float(np.median(size))
    spread = float(median_abs_deviation(size, scale="normal"))
    return median + FAR * max(spread, MIN_SHARE * median, MIN_SPREAD)
