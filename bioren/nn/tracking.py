"""From the moments of a minibatch to (r, d), and into the running statistics.

Everything here is arithmetic on one number per channel, the same for every layer and every way
of computing the moments: in one process or over all ranks, of all values or the masked ones.
It is written with plain operators: on a CPU it runs on NumPy arrays, whose operations start
several times faster than torch's, which is what counts with few numbers.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bioren.bridge import clip_terms, mixed_terms, renorm_terms
from bioren.nn._torch import is_readable, is_traced, saved_for_backward
from bioren.nn.moments import ChannelMoments, several, statistics_dtype
from bioren.nn.recomputation import Recollection
from bioren.nn.schedules import Bound

__all__ = ["Moving", "Observer", "Tracker"]

Array = Any  # numpy.ndarray or torch.Tensor, never mixed
Wanted = Callable[[ChannelMoments, Array, Array], tuple[Array, Array]]
"""What is asked of a minibatch that meets a running mean and variance."""
Moving = Literal["var", "std"]
Observer = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Called with r and d before the limits, each one per channel, and with r_max and d_max."""


@dataclass(slots=True)  # not frozen: one is made at every step, and that would take longer
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
    mixing
        Share of (r, d) that is applied, a number or a 0-d tensor; without gradient.
    moving
        Whether variances or standard deviations are averaged over minibatches.
    first
        Whether nothing was seen before, so that this minibatch is what the running statistics
        are at first; a bool or a 0-d bool tensor.
    counter
        Of the minibatches that were let in, 0-d int64, counted on here; or None.
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
    mixing: Bound = 1.0
    moving: Moving = "var"
    first: bool | Tensor = False
    counter: Tensor | None = None
    recollection: Recollection | None = None
    observe: Observer | None = None

    @property
    def is_batch_norm(self) -> bool:
        """Whether torch's own training step, statistics and all, does what is asked for."""
        closed = bool(self._has_numbers and self.r_max == 1 and self.d_max == 0)
        return closed and self._is_plain and self.first is False

    def meet(self, batch: ChannelMoments) -> tuple[Tensor, Tensor]:
        """Return what is applied of (r, d) of `batch`, then let it into the running statistics."""
        if self._fits_one_kernel(batch):
            r, d = self._step_in_one_kernel(batch)
            return (r, d) if self._applies_all else mixed_terms(r, d, self.mixing)
        return self._once(batch, self._terms)

    def meet_values(self, input: Tensor) -> tuple[ChannelMoments, tuple[Tensor, Tensor]] | None:
        """Do what `meet` does, and return the moments as well, in one pass over all values.

        None if torch's kernel, which averages what it reads, does not do what is asked for.
        """
        mean, var = self.running_mean, self.running_var
        number = input.numel() // input.shape[1]
        if not (
            number > 1  # it would take a single value's variance for NaN
            and mean.is_cpu
            and mean.dtype == var.dtype == statistics_dtype(input)
            and self.moving == "var"
            and self.first is False
            and self.recollection is None
            and self._has_numbers
        ):
            return None
        before = mean.numpy().copy(), var.numpy().copy()
        own_mean, own_var = torch.batch_norm_update_stats(
            input.detach(), mean, var, float(self.momentum)
        )
        batch: Any = ChannelMoments(own_mean.numpy(), own_var.numpy(), number)  # type: ignore[arg-type]
        after = mean.numpy(), var.numpy()
        with np.errstate(all="ignore"):
            r, d = self._terms(batch, *before)
            if not _all_finite(*after):
                after[0][...], after[1][...] = before
            elif self.counter is not None:
                self.counter.add_(1)
        terms = torch.from_numpy(r), torch.from_numpy(d)
        return ChannelMoments(own_mean, own_var, number), terms

    def population(self, batch: ChannelMoments) -> tuple[Tensor, Tensor]:
        """Return the running mean and variance that `batch` meets, then let it in."""
        return self._once(batch, lambda batch, mean, var: (mean + 0, var + 0))  # copies

    def assign(self, mean: Tensor, var: Tensor, empty: bool | Tensor = False) -> None:
        """Take over new running statistics, or none of them if a value is not finite.

        What comes of an empty minibatch does not count.
        """
        if empty is False and is_readable(mean) and mean.dtype == self.running_mean.dtype:
            arrays = (self.running_mean, self.running_var, mean, var)
            with np.errstate(all="ignore"):
                self._assign_arrays(*(array.numpy() for array in arrays))
            return
        running = self.running_mean, self.running_var
        new = mean.to(running[0].dtype), var.to(running[1].dtype)
        # No value is looked at, for which a GPU would have to be waited for.
        finite = (new[0] + new[1]).sum().isfinite()
        for old, value in zip(running, new, strict=True):
            # Like torch's own kernel not seen by autograd, so that graphs of evaluation stay valid.
            target = old if is_traced() else old.data
            target.copy_(torch.where(finite, value, old))
        if self.counter is not None:
            self.counter.add_(finite & (torch.as_tensor(empty, device=finite.device) == 0))

    @property
    def _is_plain(self) -> bool:
        """Whether variances are averaged, and nobody else is told."""
        return self.observe is None and self.recollection is None and self.moving == "var"

    @property
    def _has_numbers(self) -> bool:
        return not any(
            isinstance(value, Tensor)
            for value in (self.r_max, self.d_max, self.momentum, self.mixing, self.first)
        )

    @property
    def _applies_all(self) -> bool:
        return not isinstance(self.mixing, Tensor) and self.mixing == 1

    def _once(self, batch: ChannelMoments, wanted: Wanted) -> tuple[Tensor, Tensor]:
        """Return what is wanted of `batch`, or what it was if this pass is run again."""
        if self.recollection is not None:
            known = self.recollection.recall(batch.mean, batch.var)
            if known is not None:
                first, second = known
                return first, second
        step = self._step_in_numpy if self._is_readable(batch) else self._step_in_torch
        found = step(batch, wanted)
        if self.recollection is not None:
            self.recollection.remember(batch.mean, batch.var, found)
        return found

    def _is_readable(self, batch: ChannelMoments) -> bool:
        return (
            is_readable(batch.mean)
            and not batch.mean.requires_grad
            and self.running_mean.is_cpu
            and self.running_mean.dtype == batch.mean.dtype
            and not isinstance(batch.number, Tensor)
            and self._has_numbers
        )

    def _step_in_numpy(self, batch: ChannelMoments, wanted: Wanted) -> tuple[Tensor, Tensor]:
        arrays: Any = ChannelMoments(
            batch.mean.numpy(),  # type: ignore[arg-type]
            batch.var.numpy(),  # type: ignore[arg-type]
            *batch[2:],
        )
        running_mean, running_var = self.running_mean.numpy(), self.running_var.numpy()
        with np.errstate(all="ignore"):
            mean, var = self._before(arrays, running_mean, running_var)
            first, second = wanted(arrays, mean, var)
            if batch.number > 0:
                self._assign_arrays(running_mean, running_var, *self._after(arrays, mean, var))
        return torch.from_numpy(first), torch.from_numpy(second)

    def _fits_one_kernel(self, batch: ChannelMoments) -> bool:
        """Return whether all that is asked for is what the kernel for GPUs does."""
        if not (batch.mean.is_cuda and _HAS_TRITON and self._is_plain):
            return False
        tensors = (batch.mean, batch.var, self.running_mean, self.running_var)
        return (
            type(batch.mean) is Tensor
            and not is_traced()
            and isinstance(batch.number, int)
            and len(batch.mean) <= MOST_CHANNELS
            and all(t.is_cuda and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
            and all(
                t.is_cuda
                for t in (self.r_max, self.d_max, self.momentum, self.first, self.counter)
                if isinstance(t, Tensor)
            )
        )

    def _step_in_one_kernel(self, batch: ChannelMoments) -> tuple[Tensor, Tensor]:
        from bioren.nn.fused import fused_step

        return fused_step(
            batch.mean.detach(),
            batch.var.detach(),
            batch.number,  # type: ignore[arg-type]  # it is a number, see above
            self.running_mean,
            self.running_var,
            self.momentum,
            self.eps,
            self.r_max,
            self.d_max,
            first=self.first,
            counter=self.counter,
        )

    def _assign_arrays(
        self, running_mean: np.ndarray, running_var: np.ndarray, mean: np.ndarray, var: np.ndarray
    ) -> None:
        if _all_finite(mean, var):
            running_mean[...], running_var[...] = mean, var
            if self.counter is not None:
                self.counter.add_(1)

    def _step_in_torch(self, batch: ChannelMoments, wanted: Wanted) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            batch = batch.detach()
            running = (t.to(batch.mean.dtype) for t in (self.running_mean, self.running_var))
            mean, var = self._before(batch, *running)
            first, second = saved_for_backward(*wanted(batch, mean, var))
            # A number is above 0 here, and may be symbolic, where a compiler is at work.
            empty = isinstance(batch.number, Tensor) and batch.number == 0
            self.assign(*self._after(batch, mean, var), empty=empty)
            return first, second

    def _before(self, batch: ChannelMoments, mean: Array, var: Array) -> tuple[Array, Array]:
        """Return the statistics that the minibatch meets: if it is the first, its own."""
        if self.first is False:
            return mean, var
        own = batch.unbiased()
        if self.first is True and not isinstance(batch.number, Tensor):
            if batch.number == 0:
                return mean, var
            return batch.mean, own if several(batch.effective) else var  # one has no variance
        first = torch.as_tensor(self.first, device=own.device)
        number = torch.as_tensor(batch.effective, device=own.device)
        return (
            torch.where(first & (number > 0), batch.mean, mean),
            torch.where(first & several(number), own, var),
        )

    def _terms(self, batch: ChannelMoments, mean: Array, var: Array) -> tuple[Array, Array]:
        std_b, std = (batch.var + self.eps) ** 0.5, (var + self.eps) ** 0.5
        r, d = renorm_terms(batch.mean, std_b, mean, std)
        if self.observe is not None and not torch._C._are_functorch_transforms_active():
            told = (torch.as_tensor(value) for value in (r, d))
            limits = (torch.as_tensor(limit) for limit in (self.r_max, self.d_max))
            self.observe(*told, *limits)
        r, d = clip_terms(r, d, self.r_max, self.d_max)
        return (r, d) if self._applies_all else mixed_terms(r, d, self.mixing)

    def _after(self, batch: ChannelMoments, mean: Array, var: Array) -> tuple[Array, Array]:
        """Return the statistics after the minibatch, as new arrays."""
        new_mean = mean + self.momentum * (batch.mean - mean)
        if self.moving == "std":
            # As in the paper, algorithm 1: the deviation of the minibatch with its biased variance.
            std, own = (var + self.eps) ** 0.5, (batch.var + self.eps) ** 0.5
            new_var = ((std + self.momentum * (own - std)) ** 2 - self.eps).clip(0)
        else:
            new_var = var + self.momentum * (batch.unbiased() - var)
        number = batch.effective
        if isinstance(number, Tensor):
            new_mean = torch.where(number > 0, new_mean, mean)
            return new_mean, torch.where(several(number), new_var, var)
        return new_mean, new_var if several(number) else var


def _all_finite(mean: np.ndarray, var: np.ndarray) -> bool:
    # A value that is not finite makes the sum so.
    return math.isfinite(np.add.reduce(mean + var, dtype=np.float64))


MOST_CHANNELS = 8192
"""All channels are in the registers of one block; beyond this number they do not fit."""
_HAS_TRITON = importlib.util.find_spec("triton") is not None
