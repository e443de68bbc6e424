"""Batch Renormalization as a layer that takes the place of torch's batch normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _NormBase

from bioren.nn.functional import batch_renorm
from bioren.nn.limits import PAPER, Bound, LimitSchedule, as_schedule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BatchRenorm1d"]


# Not a _BatchNorm: SyncBatchNorm.convert_sync_batchnorm would quietly turn it into plain
# batch normalisation.
class _BatchRenorm(_NormBase):
    """Batch Renormalization for any shape; subclasses check the number of dimensions."""

    limits: LimitSchedule

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        limits: LimitSchedule | tuple[float, float] = PAPER,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        self.limits = as_schedule(limits)

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` normalised, of its shape and dtype."""
        self._check_input_dim(input)
        r_max: Bound = 1.0
        d_max: Bound = 0.0
        momentum: float | Tensor = 0.0
        step = self.num_batches_tracked
        if self.training and step is not None:
            r_max, d_max = self.limits(step)
            if input.numel() > 0:
                step.add_(1)
            momentum = 1 / step if self.momentum is None else self.momentum
        # As in torch, statistics switched off after construction serve in evaluation only.
        known = self.track_running_stats or not self.training
        return batch_renorm(
            input,
            self.running_mean if known else None,
            self.running_var if known else None,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            momentum,
            self.eps,
            r_max=r_max,
            d_max=d_max,
        )

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        arguments: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{arguments}, limits={self.limits}"

    def _check_input_dim(self, input: Tensor) -> None:
        raise NotImplementedError


class BatchRenorm1d(_BatchRenorm):
    """Batch Renormalization of ``(N, C)`` or ``(N, C, L)``, in the place of `nn.BatchNorm1d`.

    Training normalises by the minibatch and corrects, within limits, towards the running
    statistics that evaluation uses: both then compute the same, and minibatches that are small
    or not drawn independently do no harm.  See `bioren.nn.functional.batch_renorm`.

    The running statistics start at mean 0 and variance 1, which say nothing of the data.  The
    schedule `PAPER` therefore begins with 5,000 steps of plain batch normalisation.  Constant
    limits hold from the first step on, so that a first batch far from (0, 1) is left partly
    un-normalised: give them to layers whose statistics are loaded.

    The state dict has the keys of `nn.BatchNorm1d` and loads both ways; a loaded
    ``num_batches_tracked`` is the step of the schedule.  As with every normalisation by the
    minibatch, a single row of two dimensions lies at its own mean: its output is right, within
    the limits, and its input gradient zero.

    Parameters
    ----------
    num_features
        Number of channels C.
    eps
        Added to every variance.
    momentum
        Share of a minibatch in the running statistics; None for the mean of all minibatches.
    affine
        Whether to learn a weight and a bias per channel.
    track_running_stats
        If False there are no running statistics, and the layer is plain batch normalisation in
        training and evaluation alike.
    limits
        A schedule (`PAPER`, `LinearLimits`, or any callable of the step; a picklable one, if
        the layer is to be pickled), or a pair ``(r_max, d_max)`` that holds at every step.
    device, dtype
        Of parameters and buffers.

    Raises
    ------
    ValueError
        On forward, if the input has neither two nor three dimensions or another number of
        channels.

    References
    ----------
    Ioffe (2017), *Batch Renormalization*, arXiv:1702.03275.

    Examples
    --------
    >>> import torch
    >>> layer = BatchRenorm1d(3, limits=(3.0, 5.0))
    >>> layer(torch.randn(8, 3)).shape
    torch.Size([8, 3])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 3) or input.shape[1] != self.num_features:
            msg = (
                f"expected input of shape (N, {self.num_features}) or (N, {self.num_features}, L), "
                f"received {tuple(input.shape)}."
            )
            raise ValueError(msg)
