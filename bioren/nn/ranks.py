"""Moments merged over the ranks of a process group, with their gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from bioren.nn.moments import ChannelMoments, merged_moments

__all__ = ["merged_over_ranks"]


def merged_over_ranks(local: ChannelMoments, group: dist.ProcessGroup | None) -> ChannelMoments:
    """Return the moments of the minibatches of all ranks together, the same on each rank.

    Every rank has to take part, one without a single value too.

    Parameters
    ----------
    local
        Moments of this rank's minibatch.
    group
        The ranks; None stands for all.
    """
    number = torch.as_tensor(local.number, dtype=local.mean.dtype, device=local.mean.device)
    squares = number if local.squares is None else local.squares
    flat = torch.cat([local.mean, local.var, number[None], squares[None]])
    parts = _gathered(flat, group)  # ranks x (2 * channels + 2)
    channels = len(local.mean)
    mean, var, numbers, squares = torch.split(parts, [channels, channels, 1, 1], dim=1)
    return merged_moments(ChannelMoments(mean, var, numbers.detach(), squares.detach()))


def _gathered(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    gathered: Tensor = _Gather.apply(values, group)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    """Stack every rank's vector; backward sums the gradient that all ranks have for this one."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, values.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient[dist.get_rank(ctx.group)], None
