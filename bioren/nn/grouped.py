"""Moving statistics per sample: moments by group of a minibatch, and how they are remembered.

The moments of a sample are those of all its cells seen so far, merged exactly (Chan, Golub &
LeVeque 1983), until the next minibatch would weigh less than the momentum; from there on they
are an exponential average, in which a minibatch weighs the momentum.  One cell at a time gives
the same as all at once, since the spread between minibatches counts as well.

A variance from a few cells cannot be trusted, and one cell has none.  So that of a sample never
seen before starts out as the mean of `PRIOR_CELLS` degrees of freedom at a prior variance and of
the cells' own ``n - 1``, the moderated variance of Smyth (2004), doi:10.2202/1544-6115.1027.
The prior is the variance within samples, pooled over the minibatch and, once there are some,
over the samples known by then; failing both, the population's.  Later cells dilute it.

The population is made of samples of equal weight: the mean of their means, and the mean of their
variances plus the variance of their means.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bioren.bridge import comparable as comparable  # one rule for a spread of zero
from bioren.bridge import kept_terms, renorm_terms

__all__ = [
    "PRIOR_CELLS",
    "GroupMoments",
    "Normalizer",
    "SampleStatistics",
    "first_seen",
    "grouped_moments",
    "population_normalizer",
    "spread",
    "updated",
]

PRIOR_CELLS = 4.0
"""Degrees of freedom of the prior variance of a new sample."""


class GroupMoments(NamedTuple):
    """Moments of the cells of each sample in one minibatch."""

    cells: Tensor
    """Cells of each sample, shape ``(samples,)``, floating point."""
    mean: Tensor
    """Shape ``(samples, features)``; 0 without cells."""
    var: Tensor
    """Biased variance, shape ``(samples, features)``; 0 without cells."""


class SampleStatistics(NamedTuple):
    """What a `SampleRenorm1d` remembers."""

    sample_mean: Tensor
    """Shape ``(samples, features)``."""
    sample_var: Tensor
    """Shape ``(samples, features)``."""
    sample_cells: Tensor
    """Cells seen of each sample, shape ``(samples,)``, int64; 0 for a sample never seen."""
    running_mean: Tensor
    """The population's, shape ``(features,)``."""
    running_var: Tensor
    """The population's, shape ``(features,)``."""

    def to(self, dtype: torch.dtype) -> SampleStatistics:
        """Return the same in `dtype`, all but the counts; not copied without need."""
        mean, var, cells, running_mean, running_var = self
        return SampleStatistics(
            mean.to(dtype), var.to(dtype), cells, running_mean.to(dtype), running_var.to(dtype)
        )

    def with_unseen_as_population(self) -> SampleStatistics:
        """Return the same with the population's moments for samples never seen.

        Of those nothing is known, hence nothing is corrected.
        """
        seen = (self.sample_cells > 0)[:, None]
        return self._replace(
            sample_mean=torch.where(seen, self.sample_mean, self.running_mean),
            sample_var=torch.where(seen, self.sample_var, self.running_var),
        )

    def assign(self, new: SampleStatistics) -> None:
        """Take over the values of `new` in place, or none of them if one is not finite."""
        values = [value.to(old.dtype) for old, value in zip(self, new, strict=True)]
        finite = torch.stack([value.isfinite().all() for value in values]).all()
        for old, value in zip(self, values, strict=True):
            old.copy_(torch.where(finite, value, old))


class Normalizer(NamedTuple):
    """The map ``x -> r * (x - mean) / std + d``, one for each sample."""

    mean: Tensor
    """Shape ``(samples, features)``, as of all fields."""
    std: Tensor
    """Positive."""
    r: Tensor
    d: Tensor

    def apply(
        self, x: Tensor, sample: Tensor, *, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Return ``(r * z + d) * weight + bias`` of `x`, of shape (cells, features)."""
        scale, shift = self.r / self.std, self.d
        if weight is not None:
            scale, shift = scale * weight, shift * weight
        if bias is not None:
            shift = shift + bias
        # The mean is subtracted on its own: folded into the shift, large values would cancel.
        centered = x - self.mean.index_select(0, sample)
        return torch.addcmul(shift.index_select(0, sample), centered, scale.index_select(0, sample))

    def undo(
        self, y: Tensor, sample: Tensor, *, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Return the `x` of which `apply` makes `y`."""
        if bias is not None:
            y = y - bias
        if weight is not None:
            y = y / weight
        z = (y - self.d.index_select(0, sample)) * (self.std / self.r).index_select(0, sample)
        return z + self.mean.index_select(0, sample)


def grouped_moments(x: Tensor, sample: Tensor, n_samples: int) -> GroupMoments:
    """Return the moments of the rows of each sample, with their gradient.

    Parameters
    ----------
    x
        Shape ``(cells, features)``, at least single precision.
    sample
        Sample of each cell in ``range(n_samples)``, shape ``(cells,)``.
    """
    count = x.new_zeros(n_samples).index_add(0, sample, x.new_ones(len(x)))
    share = (1 / count.clamp(min=1))[:, None]

    def means(values: Tensor) -> Tensor:  # cells x features -> samples x features
        return x.new_zeros(n_samples, x.shape[1]).index_add(0, sample, values) * share

    # A first mean to subtract, a second one to correct it: large sums lose the small digits.
    rough = means(x.detach())
    deviation = x - rough.index_select(0, sample)
    rest = means(deviation)
    deviation = deviation - rest.index_select(0, sample)
    return GroupMoments(count, rough + rest, means(deviation.square()))


def spread(var: Tensor, eps: float) -> Tensor:
    """Return ``sqrt(var + eps)``, 0 where that is 0, with a gradient that is finite there."""
    total = var + eps
    positive = total > 0
    return torch.where(positive, total, 1).sqrt() * positive


@torch.no_grad()
def population_normalizer(
    statistics: SampleStatistics, eps: float, *, max_kept: tuple[float, float], mixing: float
) -> Normalizer:
    """Return the normalization of each sample with what is kept of its bridge; no gradient."""
    std_s, std = comparable(spread(statistics.sample_var, eps), spread(statistics.running_var, eps))
    mean_s = statistics.sample_mean
    r, d = renorm_terms(mean_s, std_s, statistics.running_mean, std)
    return Normalizer(mean_s, std_s, *kept_terms(r, d, max_kept=max_kept, strength=1 - mixing))


def first_seen(statistics: SampleStatistics, batch: GroupMoments) -> SampleStatistics:
    """Return statistics that have moments for the minibatch's new samples; counts stay.

    If no sample was known at all, the population is made of the new ones.
    """
    seen = statistics.sample_cells > 0  # samples
    new = ~seen & (batch.cells > 0)
    m2 = batch.var * batch.cells[:, None]

    _, within, _ = _mixture(statistics, seen)
    known = PRIOR_CELLS * seen.any()
    degrees = (batch.cells - 1).clamp(min=0).sum() + known
    pooled = (m2.sum(dim=0) + known * within) / degrees.clamp(min=1)
    prior = torch.where(degrees > 0, pooled, statistics.running_var)  # features
    moderated = (PRIOR_CELLS * prior + m2) / (PRIOR_CELLS - 1 + batch.cells.clamp(min=1))[:, None]

    started = statistics._replace(
        sample_mean=torch.where(new[:, None], batch.mean, statistics.sample_mean),
        sample_var=torch.where(new[:, None], moderated, statistics.sample_var),
    )
    mean, within, between = _mixture(started, new)
    return started._replace(
        running_mean=torch.where(seen.any(), statistics.running_mean, mean),
        running_var=torch.where(seen.any(), statistics.running_var, within + between),
    )


def updated(
    statistics: SampleStatistics, batch: GroupMoments, momentum: float | None
) -> SampleStatistics:
    """Return the statistics once the minibatch is merged in.

    Parameters
    ----------
    statistics
        What `first_seen` returned, so that new samples have their first moments.
    batch
        Moments of the minibatch.
    momentum
        In (0, 1]: smallest weight of a minibatch; or None.
    """
    count = batch.cells
    before = statistics.sample_cells.to(count.dtype)
    if momentum is not None:
        # As many cells as make the minibatch weigh the momentum.
        before = torch.minimum(before, count * ((1 - momentum) / momentum))
    share = (count / (before + count).clamp(min=1))[:, None]  # samples x 1
    difference = batch.mean - statistics.sample_mean
    mean = statistics.sample_mean + difference * share

    degrees = (PRIOR_CELLS - 1 + before)[:, None]
    m2 = batch.var * count[:, None] + difference.square() * before[:, None] * share
    var = (statistics.sample_var * degrees + m2) / (degrees + count[:, None])
    here = (count > 0)[:, None]
    known = here & (statistics.sample_cells > 0)[:, None]  # a new one's variance is right already
    merged = statistics._replace(
        sample_mean=torch.where(here, mean, statistics.sample_mean),
        sample_var=torch.where(known, var, statistics.sample_var),
        sample_cells=statistics.sample_cells + count.to(torch.int64),
    )
    mean, within, between = _mixture(merged, merged.sample_cells > 0)
    return merged._replace(running_mean=mean, running_var=within + between)


def _mixture(statistics: SampleStatistics, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance within and variance between of the member samples, equally weighed."""
    share = (members / members.sum().clamp(min=1))[:, None].to(statistics.sample_mean.dtype)

    def average(values: Tensor) -> Tensor:
        return torch.where(members[:, None], values * share, 0).sum(dim=0)

    mean = average(statistics.sample_mean)
    between = average((statistics.sample_mean - mean).square())
    return mean, average(statistics.sample_var), between
