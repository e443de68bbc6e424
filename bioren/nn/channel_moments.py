"""Mean and variance per channel of a minibatch: plain, weighted, merged.

A channel's values are all values of dimension 1 at the same index: one per row, or one per row
and position.  Statistics are never formed as ``E[x**2] - E[x]**2``, and those of float16 and
bfloat16 are in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bioren.nn._torch import is_readable

__all__ = [
    "ChannelMoments",
    "ValueWeights",
    "channel_moments",
    "merged_moments",
    "several",
    "statistics_dtype",
    "weighted_moments",
]


class ChannelMoments(NamedTuple):
    """Moments of the values of each channel."""

    mean: Tensor
    """Shape ``(channels,)``, at least single precision."""
    var: Tensor
    """Biased variance (divided by the count), of the shape of `mean`."""
    number: float | Tensor
    """Values per channel, or the sum of their weights; the same for all channels, a 0-d tensor
    where reading it would hold up a GPU."""
    squares: float | Tensor | None = None
    """Sum of the squared shares of the values in the whole, likewise; None if all are alike."""

    @property
    def effective(self) -> float | Tensor:
        """Number of values of equal weight that say as much, ``sum(w)**2 / sum(w**2)``.

        It does not depend on the scale of the weights (Kish 1965, *Survey Sampling*).
        """
        if self.squares is None:
            return self.number
        if not isinstance(self.squares, Tensor):
            return 1 / self.squares if self.squares > 0 else 0
        positive = self.squares > 0
        return torch.where(positive, 1 / torch.where(positive, self.squares, 1), 0)

    def unbiased(self) -> Tensor:
        """Return the variance divided by the number less one; the biased one if that is 0."""
        n = self.effective
        if isinstance(n, Tensor):
            return self.var * torch.where(several(n), n / (n - 1), 1)
        return self.var * (n / (n - 1)) if several(n) else self.var

    def detach(self) -> ChannelMoments:
        """Return the same without gradient."""
        return self._replace(mean=self.mean.detach(), var=self.var.detach())


def several(number: Any) -> Any:
    """Return whether there are two values or more, but for rounding, so that they vary."""
    return number > 1 + 1e-4


def statistics_dtype(input: Tensor) -> torch.dtype:
    """Return the dtype of statistics of `input`: its own, but at least single precision."""
    # Not torch.promote_types, which would be a node of its own in an exported graph.
    return torch.float32 if input.dtype in (torch.float16, torch.bfloat16) else input.dtype


class ValueWeights(NamedTuple):
    """How much each value counts in the moments of a minibatch, alike for all channels."""

    share: Tensor
    """Of each value in the whole, shape ``(N, 1, *positions)``; they sum to 1, or all are 0."""
    total: float | Tensor
    """Sum of the weights."""
    squares: float | Tensor
    """Sum of the squared shares."""

    @classmethod
    def of(cls, weights: Tensor, dtype: torch.dtype) -> ValueWeights:
        """Return the weights, of shape ``(N, 1, *positions)``, as shares of their sum."""
        weights = weights.to(dtype)
        total = weights.sum()
        if is_readable(total):
            number = total.item()
            share = weights / (number if number > 0 else 1)
            return cls(share, number, share.square().sum().item())
        share = weights / torch.where(total > 0, total, 1)
        return cls(share, total, share.square().sum())


def channel_moments(input: Tensor, weights: ValueWeights | None = None) -> ChannelMoments:
    """Return the moments of the values of each channel, with their gradient.

    Parameters
    ----------
    input
        Shape ``(N, C)`` or ``(N, C, *positions)``.
    weights
        None weighs all values alike.  What weighs nothing may hold anything, NaN too.
    """
    x = input.to(statistics_dtype(input))
    over = [0, *range(2, x.dim())]
    if x.numel() == 0:
        nothing = x.sum(over)  # zeros, with a gradient: other ranks wait for it
        return ChannelMoments(nothing, nothing, 0)
    if weights is None:
        # As torch's batch normalization writes it, so that a compiler makes one pass of the two.
        var, mean = torch.var_mean(x, over, correction=0, keepdim=True)
        return ChannelMoments(mean.flatten(), var.flatten(), x.numel() // x.shape[1])
    share, total, squares = weights
    x = torch.where(share > 0, x, 0)
    mean = (x * share).sum(over)
    deviation = x - of_channels(mean, x)
    var = (deviation.square() * share).sum(over)
    return ChannelMoments(mean, var, total, squares)


@torch.no_grad()
def weighted_moments(input: Tensor, weights: ValueWeights) -> ChannelMoments:
    """Return `channel_moments` in a fraction of its time, without gradient.

    A value that weighs nothing has to be finite all the same, and so has its square, or the
    moments are not.
    """
    share, total, squares = weights
    with torch.autocast(input.device.type, enabled=False):  # it would round the statistics
        x = input.to(statistics_dtype(input))
        mean = _weighted_sum(x, share)
        deviation = x - of_channels(mean, x)
        # The first mean lacks the small digits of large values.
        rest = _weighted_sum(deviation, share)
        var = _weighted_sum(deviation.square_(), share) - rest.square()
    return ChannelMoments(mean + rest, var.clamp_(min=0), total, squares)


def _weighted_sum(x: Tensor, share: Tensor) -> Tensor:
    """Return the sum of ``x * share`` of each channel, as a product of matrices."""
    if x.is_cuda:  # whose matrix products may be told to round
        return (x * share).sum([0, *range(2, x.dim())])
    if x.dim() == 2 or x.stride(1) == 1:  # channels are last in memory: a view of rows
        return (share.reshape(1, -1) @ x.movedim(1, -1).reshape(-1, x.shape[1]))[0]
    return torch.bmm(x.flatten(2), share.flatten(1)[:, :, None])[:, :, 0].sum(0)


def merged_moments(parts: ChannelMoments) -> ChannelMoments:
    """Return the moments of all parts together, as if their values had been pooled.

    Parameters
    ----------
    parts
        Moments of shape ``(parts, channels)``; numbers, and sums of squared weights, of shape
        ``(parts, 1)``, or one number for all.  Parts without values weigh nothing.

    References
    ----------
    Chan, Golub & LeVeque (1983), *The American Statistician* 37:242.
    """
    if not isinstance(parts.number, Tensor):
        mean, var = parts.mean.mean(0), parts.var.mean(0)
        between = (parts.mean - mean).square().mean(0)
        return ChannelMoments(mean, var + between, parts.number * len(parts.mean))
    count = parts.number.sum()
    share = parts.number / torch.where(count > 0, count, 1)
    mean = (share * parts.mean).sum(0)
    var = (share * (parts.var + (parts.mean - mean).square())).sum(0)
    squares = None
    if isinstance(parts.squares, Tensor):
        squares = (share.square() * parts.squares).sum()
    return ChannelMoments(mean, var, count, squares)


def of_channels(values: Tensor, input: Tensor) -> Tensor:
    """Return `values`, one per channel, in the shape that broadcasts to `input`."""
    return values.view(-1, *[1] * (input.dim() - 2))
