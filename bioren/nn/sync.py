"""Batch Renormalization whose minibatch is that of all ranks together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from bioren.bridge import renorm_terms
from bioren.nn.batch_renorm import _BatchRenorm
from bioren.nn.channel_moments import ChannelMoments, ValueWeights, channel_moments, merged_moments
from bioren.nn.kernels import normalize
from bioren.nn.renormalization import applied_terms
from bioren.nn.tracking import Tracker

__all__ = ["SyncBatchRenorm", "check_shareable"]


class SyncBatchRenorm(_BatchRenorm):
    """`BatchRenorm1d`, 2d or 3d over all ranks, in the place of `nn.SyncBatchNorm`.

    Ranks exchange count, mean and variance per channel, in one message each way, and merge them
    (Chan, Golub & LeVeque 1983): output, gradient and running statistics are those of one process
    with all rows, also where ranks have different numbers of rows or none.  Every rank has to
    call the layer as often as the others.  From the moments of a rank to those of all there is a
    bridge again, so that each rank normalizes its own rows by its own moments and corrects.

    Without an initialized process group, with one rank, and in evaluation nothing is exchanged.
    There is no second derivative.

    `DistributedDataParallel` copies the buffers of rank 0 to all others at each forward pass
    unless told otherwise.  Here they are equal anyway.  With layers that are not synchronized,
    rank 0's running statistics then lead all ranks, in training too, and what the others saw is
    lost.  ``broadcast_buffers=False`` (from torch 2.13 on ``forward_sync_buffers=False``) leaves
    each rank its own, which trained worse in `benchmarks/layers/distributed.py`: one target for
    all matters more than whose it is.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats
        As in `BatchRenorm1d`.
    process_group
        The ranks; None for all.
    device, dtype
        Of parameters and buffers.
    **options
        As in `BatchRenorm1d`: limits, initial, moving, mixing, bias.

    Raises
    ------
    ValueError
        On forward, if the input has fewer than two dimensions or another number of channels.
    """

    process_group: dist.ProcessGroup | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **options
        )
        self.process_group = process_group

    def set_options(self, **options: Any) -> None:
        """Set what batch normalization does not have."""
        super().set_options(**options)
        check_shareable(self)

    def _normalize(
        self,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        tracker: Tracker | None,
        weights: ValueWeights | None,
        learned: Tensor | None,
    ) -> Tensor:
        if not self._several_ranks():
            return super()._normalize(
                input, weight, bias, tracker=tracker, weights=weights, learned=learned
            )
        if weights is not None:
            # What does not count may be NaN, and 0 * NaN would reach every gradient.
            input = torch.where((weights.share > 0) | input.isfinite(), input, 0)
        local = channel_moments(input, weights)
        batch = merged_over_ranks(local, self.process_group)
        r, d = renorm_terms(local.mean, self._std(local), batch.mean, self._std(batch))
        if tracker is not None:
            r_applied, d_applied = applied_terms(tracker, batch, learned)
            r, d = r_applied * r, r_applied * d + d_applied
        return normalize(
            input, local, weight=weight, bias=bias, eps=self.eps, terms=(r, d), weights=weights
        )

    def _std(self, moments: ChannelMoments) -> Tensor:
        return (moments.var + self.eps).sqrt()

    def _several_ranks(self) -> bool:
        return (
            self.training
            and dist.is_available()
            and dist.is_initialized()
            and dist.get_world_size(self.process_group) > 1
        )

    def _is_minibatch(self, input: Tensor) -> bool:
        return self._several_ranks() or super()._is_minibatch(input)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            msg = (
                f"expected input of shape (N, {self.num_features}) or (N, {self.num_features}, "
                f"*positions), received {tuple(input.shape)}."
            )
            raise ValueError(msg)


def check_shareable(layer: _BatchRenorm) -> None:
    """Raise if `layer` has an option that ranks cannot share."""
    if layer.backward_averages is not None:
        raise ValueError("average_backward is not offered over ranks; leave it out.")


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
    mean = local.mean
    number = torch.as_tensor(local.number, dtype=mean.dtype, device=mean.device)
    own = 1 / number.clamp(min=1) if local.squares is None else local.squares
    squares = torch.as_tensor(own, dtype=mean.dtype, device=mean.device)
    flat = torch.cat([local.mean, local.var, number[None], squares[None]])
    parts = _gathered(flat, group)  # ranks x (2 * channels + 2)
    channels = len(mean)
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
