"""Mean and variance per channel of a minibatch: plain, weighted, merged.

A channel's values are all values of dimension 1 at the same index: one per row, or one per row
and position.  Statistics are never formed as ``E[x**2] - E[x]**2``, and those of float16 and
bfloat16 are in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ChannelMoments", "channel_moments", "merged_moments", "statistics_dtype"]


class ChannelMoments(NamedTuple):
    """Moments of the values of each channel."""

    mean: Tensor
    """Shape ``(channels,)``, at least single precision."""
    var: Tensor
    """Biased variance (divided by the count), of the shape of `mean`."""
    number: int | Tensor
    """Values per channel, or the sum of their weights; 0-d, the same for all channels."""
    squares: Tensor | None = None
    """Sum of the squared weights, 0-d; None if they are 1."""

    @property
    def effective(self) -> int | Tensor:
        """Number of values of equal weight that say as much, ``sum(w)**2 / sum(w**2)``.

        It does not depend on the scale of the weights (Kish 1965, *Survey Sampling*).
        """
        if self.squares is None:
            return self.number
        positive = self.squares > 0
        return torch.where(positive, self.number**2 / torch.where(positive, self.squares, 1), 0)

    def unbiased(self) -> Tensor:
        """Return the variance divided by the number less one; the biased one if that is 0."""
        n = self.effective
        if isinstance(n, int):
            return self.var * (n / max(n - 1, 1))
        return self.var * torch.where(several(n), n / (n - 1), 1)

    def detach(self) -> ChannelMoments:
        """Return the same without gradient."""
        return self._replace(mean=self.mean.detach(), var=self.var.detach())


def several(number: Tensor) -> Tensor:
    """Return whether there are two values or more, but for rounding, so that they vary."""
    return number > 1 + 1e-4


def statistics_dtype(input: Tensor) -> torch.dtype:
    """Return the dtype of statistics of `input`: its own, but at least single precision."""
    return torch.promote_types(input.dtype, torch.float32)


def channel_moments(input: Tensor, mask: Tensor | None = None) -> ChannelMoments:
    """Return the moments of the values of each channel, with their gradient.

    Parameters
    ----------
    input
        Shape ``(N, C)`` or ``(N, C, *positions)``.
    mask
        Weight of each value, the same for all channels: shape ``(N, 1, ...)`` that broadcasts to
        `input`.  None weighs all alike.  What weighs nothing may hold anything, NaN too.
    """
    x = input.to(statistics_dtype(input))
    over = [0, *range(2, x.dim())]
    if x.numel() == 0:
        nothing = x.sum(over)  # zeros, with a gradient: other ranks wait for it
        return ChannelMoments(nothing, nothing, 0)
    if mask is None:
        var, mean = torch.var_mean(x, over, correction=0)
        return ChannelMoments(mean, var, x.numel() // x.shape[1])
    weight = mask.to(x.dtype).expand(x.shape[0], 1, *x.shape[2:])
    count = weight.sum()
    share = weight / torch.where(count > 0, count, 1)
    x = torch.where(weight > 0, x, 0)
    mean = (x * share).sum(over)
    deviation = x - of_channels(mean, x)
    var = (deviation.square() * share).sum(over)
    return ChannelMoments(mean, var, count, weight.square().sum())


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
    if isinstance(parts.number, int):
        mean, var = parts.mean.mean(0), parts.var.mean(0)
        between = (parts.mean - mean).square().mean(0)
        return ChannelMoments(mean, var + between, parts.number * len(parts.mean))
    count = parts.number.sum()
    share = parts.number / torch.where(count > 0, count, 1)
    mean = (share * parts.mean).sum(0)
    var = (share * (parts.var + (parts.mean - mean).square())).sum(0)
    squares = None if parts.squares is None else parts.squares.sum()
    return ChannelMoments(mean, var, count, squares)


def of_channels(values: Tensor, input: Tensor) -> Tensor:
    """Return `values`, one per channel, in the shape that broadcasts to `input`."""
    return values.view(-1, *[1] * (input.dim() - 2))
