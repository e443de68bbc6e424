"""From the moments of a minibatch to (r, d), and into the running statistics.

Everything here is arithmetic on one number per channel, the same for every layer and every way
of computing the moments: in one process or over all ranks, of all values or the masked ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bioren.bridge import clip_terms, renorm_terms
from bioren.nn.limits import Bound
from bioren.nn.moments import ChannelMoments
from bioren.nn.recomputation import Recollection

__all__ = ["Moving", "Observer", "Tracker"]

Moving = Literal["var", "std"]
Observer = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Called with r, d as they are and r, d within the limits, each one per channel."""


@dataclass(frozen=True, slots=True)
class Tracker:
    """Bridges minibatches to running statistics, which it keeps up to date.

    Attributes
    ----------
    running_mean, running_var
        Shape ``(channels,)``; updated in place.
    momentum
        Share of the minibatch in the new running statistics; a number or a 0-d tensor.
    eps
        Added to every variance.
    r_max, d_max
        Limits on r and d; numbers or 0-d tensors.
    moving
        Whether variances or standard deviations are averaged over minibatches.
    first
        Whether nothing was seen before, so that this minibatch is what the running statistics
        are at first; a bool or a 0-d bool tensor.
    recollection
        Recognises forward passes that activation checkpointing runs again.
    observe
        Told of r and d.
    """

    running_mean: Tensor
    running_var: Tensor
    momentum: float | Tensor
    eps: float
    r_max: Bound
    d_max: Bound
    moving: Moving = "var"
    first: bool | Tensor = False
    recollection: Recollection | None = None
    observe: Observer | None = None

    @property
    def keeps_nothing(self) -> bool:
        """Whether this is plain batch normalisation and nobody asks for r and d."""
        return (
            isinstance(self.r_max, float | int)
            and self.r_max == 1
            and isinstance(self.d_max, float | int)
            and self.d_max == 0
            and isinstance(self.momentum, float | int)
            and self.moving == "var"
            and self.first is False
            and self.recollection is None
            and self.observe is None
        )

    def meet(self, batch: ChannelMoments) -> tuple[Tensor, Tensor]:
        """Return the limited (r, d) of `batch`, then let it into the running statistics."""
        return self._once(batch, self._terms)

    def population(self, batch: ChannelMoments) -> tuple[Tensor, Tensor]:
        """Return the running mean and variance that `batch` meets, then let it in."""
        return self._once(batch, self._before_copied)

    def _once(
        self,
        batch: ChannelMoments,
        wanted: Callable[[ChannelMoments], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Return what is wanted of `batch`, or what it was if the pass is run again."""
        with torch.no_grad():
            batch = batch.detach()
            if self.recollection is not None:
                known = self.recollection.recall(batch.mean)
                if known is not None:
                    return known
            found = wanted(batch)
            if self.recollection is not None:
                self.recollection.remember(batch.mean, found)
            self._let_in(batch)
            return found

    def _terms(self, batch: ChannelMoments) -> tuple[Tensor, Tensor]:
        mean, var = self._before(batch)
        r, d = renorm_terms(batch.mean, self._std(batch.var), mean, self._std(var))
        r_kept, d_kept = clip_terms(r, d, self.r_max, self.d_max)
        if self.observe is not None:
            self.observe(r, d, r_kept, d_kept)
        return r_kept, d_kept

    def _before(self, batch: ChannelMoments) -> tuple[Tensor, Tensor]:
        """Return the running statistics that the minibatch meets, not to be changed in place."""
        mean, var = self.running_mean.to(batch.mean.dtype), self.running_var.to(batch.var.dtype)
        if self.first is False:
            return mean, var
        own = batch.unbiased()
        known = torch.as_tensor(batch.number, device=own.device) > 1  # one value has no variance
        first = torch.as_tensor(self.first, device=own.device)
        return torch.where(first, batch.mean, mean), torch.where(first & known, own, var)

    def _before_copied(self, batch: ChannelMoments) -> tuple[Tensor, Tensor]:
        mean, var = self._before(batch)
        return mean.clone(), var.clone()

    def _let_in(self, batch: ChannelMoments) -> None:
        mean, var = self._before(batch)
        new_mean = torch.lerp(mean, batch.mean, self._momentum(mean))
        new_var = self._new_var(batch, var)
        self.assign(new_mean, new_var)

    def assign(self, new_mean: Tensor, new_var: Tensor) -> None:
        """Take over new running statistics, or none of them if a value is not finite."""
        total = (new_mean + new_var).sum()
        if total.device.type == "cpu" and type(total) is Tensor and not _traced():
            if math.isfinite(total.item()):
                self.running_mean.copy_(new_mean)
                self.running_var.copy_(new_var)
            return
        # Without looking at a value, for which a GPU would have to be waited for.
        finite = total.isfinite()
        for running, new in ((self.running_mean, new_mean), (self.running_var, new_var)):
            running.copy_(torch.where(finite, new.to(running.dtype), running))

    def _new_var(self, batch: ChannelMoments, var: Tensor) -> Tensor:
        if self.moving == "std":
            # As in the paper, algorithm 1: the deviation of the minibatch with its biased variance.
            std = torch.lerp(self._std(var), self._std(batch.var), self._momentum(var))
            new = (std.square() - self.eps).clamp(min=0)
        else:
            new = torch.lerp(var, batch.unbiased(), self._momentum(var))
        if isinstance(batch.number, int):
            return new if batch.number > 1 else var
        return torch.where(batch.number > 1, new, var)

    def _std(self, var: Tensor) -> Tensor:
        return (var + self.eps).sqrt()

    def _momentum(self, like: Tensor) -> float | Tensor:
        momentum = self.momentum
        return momentum.to(like.dtype) if isinstance(momentum, Tensor) else momentum


def _traced() -> bool:
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
