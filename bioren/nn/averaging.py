"""The gradient of normalisation with its means averaged over minibatches.

With z' = r z + d the normalised values and g their gradient, that of the input is::

    r / std_B * (g - mean(g) - z' mean(g z'))

with means over the minibatch (and r = 1, d = 0 for batch normalisation).  In a minibatch of two
rows they are mostly noise.  Yan et al. (2020), *Towards stabilizing batch statistics in backward
propagation of batch normalization*, arXiv:2001.06838, average them over the latest minibatches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bioren.nn.moments import ChannelMoments, of_channels, statistics_dtype

__all__ = ["BackwardAverages", "normalize_with_averages"]


class BackwardAverages(nn.Module):
    """Means of the latest minibatches' gradients.

    They are no part of the state dict: after loading, the average starts anew.  A gradient that
    is not finite is left out.  Loss scaling should be constant over as many minibatches.

    Parameters
    ----------
    size
        Number of minibatches, at least 1.

    Raises
    ------
    ValueError
        `size` is below 1.
    """

    means: Tensor
    """Shape ``(size, 2, channels)``: mean of g and of g z' of each minibatch."""
    seen: Tensor
    """Number of minibatches so far, 0-d int64."""

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            msg = f"average_backward must be a number of minibatches of 1 or more, received {size}."
            raise ValueError(msg)
        self.size = size
        # As large as the gradient turns out to be.
        self.register_buffer("means", torch.zeros(size, 2, 0), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def averaged(self, new: Tensor) -> Tensor:
        """Let the means of one minibatch, shape ``(2, channels)``, in, and return the average."""
        if self.means.shape[2] != new.shape[1]:
            self.means = new.new_zeros(self.size, *new.shape)
        self.means, self.seen = self.means.to(new), self.seen.to(new.device)
        finite = new.isfinite().all()
        slot = (self.seen % self.size)[None]
        kept = torch.where(finite, new[None], self.means.index_select(0, slot))
        self.means.index_copy_(0, slot, kept)
        self.seen.add_(finite)
        return self.means.sum(0) / self.seen.clamp(1, self.size)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return str(self.size)


def normalize_with_averages(
    input: Tensor,
    moments: ChannelMoments,
    r: Tensor | None,
    d: Tensor | None,
    eps: float,
    averages: BackwardAverages,
) -> Tensor:
    """Return ``z * r + d``, z being `input` normalised by its own `moments`.

    Parameters
    ----------
    input
        Shape ``(N, C)`` or ``(N, C, *positions)``.
    moments
        Of `input`.
    r, d
        Shape ``(C,)``; constants for the gradient.  None stands for ones and zeros.
    eps
        Added to the variance.
    averages
        What the gradient's means are averaged with; updated in the backward pass.
    """
    if r is None or d is None:
        r, d = torch.ones_like(moments.mean), torch.zeros_like(moments.mean)
    y: Tensor = _Normalize.apply(  # type: ignore[no-untyped-call]
        input, moments.mean, (moments.var + eps).rsqrt(), r, d, averages
    )
    return y


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        mean: Tensor,
        invstd: Tensor,
        r: Tensor,
        d: Tensor,
        averages: BackwardAverages,
    ) -> Tensor:
        ctx.save_for_backward(input, mean, invstd, r, d)
        ctx.averages = averages
        x = input.to(statistics_dtype(input))
        return _carried(x, mean, invstd * r, d).to(input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, mean, invstd, r, d = ctx.saved_tensors
        g, x = gradient.to(mean.dtype), input.to(mean.dtype)
        over = [0, *range(2, x.dim())]
        y = _carried(x, mean, invstd * r, d)
        average = ctx.averages.averaged(torch.stack([g.mean(over), (g * y).mean(over)]))
        inner = g - of_channels(average[0], x) - y * of_channels(average[1], x)
        return (inner * of_channels(invstd * r, x)).to(input.dtype), *[None] * 5


def _carried(x: Tensor, mean: Tensor, scale: Tensor, d: Tensor) -> Tensor:
    return (x - of_channels(mean, x)) * of_channels(scale, x) + of_channels(d, x)
