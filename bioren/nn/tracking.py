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
from bioren.nn.channel_moments import ChannelMoments, several, statistics_dtype
from bioren.nn.recomputation import Recollection
from bioren.nn.schedules import Bound

__all__ = ["Moving", "Observer", "Tracker"]

Array = Tensor
"""Or a NumPy array in its place, never mixed: the operators are the same."""
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
        Recognizes forward passes that activation checkpointing runs again.
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
        return closed and self.observe is None and self._averages_as_torch

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
        if not (self._averages_as_torch and self._has_precision_of(input) and _several_in(input)):
            return None
        mean, var = self.running_mean, self.running_var
        number = input.numel() // input.shape[1]
        before = _in_numpy(mean).copy(), _in_numpy(var).copy()
        own_mean, own_var = torch.batch_norm_update_stats(
            input.detach(), mean, var, float(self.momentum)
        )
        batch = ChannelMoments(_in_numpy(own_mean), _in_numpy(own_var), number)
        after = _in_numpy(mean), _in_numpy(var)
        with np.errstate(all="ignore"):
            r, d = self._terms(batch, *before)
            if not _all_finite(*after):
                after[0][...], after[1][...] = before
            elif self.counter is not None:
                self.counter.add_(1)
        terms = _in_torch(r), _in_torch(d)
        return ChannelMoments(own_mean, own_var, number), terms

    def population(self, batch: ChannelMoments) -> tuple[Tensor, Tensor]:
        """Return the running mean and variance that `batch` meets, then let it in."""
        return self._once(batch, lambda batch, mean, var: (mean + 0, var + 0))  # copies

    def assign(self, mean: Tensor, var: Tensor, empty: bool | Tensor = False) -> None:
        """Take over new running statistics, or none of them if a value is not finite.

        What comes of an empty minibatch does not count.
        """
        if empty is False and is_readable(mean) and mean.dtype == self.running_mean.dtype:
            running = _in_numpy(self.running_mean), _in_numpy(self.running_var)
            with np.errstate(all="ignore"):
                self._assign_arrays(running, (_in_numpy(mean), _in_numpy(var)))
            return
        tensors = self.running_mean, self.running_var
        new = mean.to(tensors[0].dtype), var.to(tensors[1].dtype)
        # No value is looked at, for which a GPU would have to be waited for.
        finite = (new[0] + new[1]).sum().isfinite()
        for old, value in zip(tensors, new, strict=True):
            # Like torch's own kernel not seen by autograd, so that graphs of evaluation stay valid.
            target = old if is_traced() else old.data
            target.copy_(torch.where(finite, value, old))
        if self.counter is not None:
            self.counter.add_(finite & (torch.as_tensor(empty, device=finite.device) == 0))

    @property
    def _averages_as_torch(self) -> bool:
        """Whether torch's kernels would update the running statistics likewise."""
        return self._averages_once and self.first is False and self._has_numbers

    @property
    def _averages_once(self) -> bool:
        """Whether variances are averaged, and no pass is run again."""
        return self.moving == "var" and self.recollection is None

    def _has_precision_of(self, input: Tensor) -> bool:
        mean, var = self.running_mean, self.running_var
        return mean.is_cpu and mean.dtype == var.dtype == statistics_dtype(input)

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
        arrays = batch._replace(mean=_in_numpy(batch.mean), var=_in_numpy(batch.var))
        running_mean, running_var = _in_numpy(self.running_mean), _in_numpy(self.running_var)
        with np.errstate(all="ignore"):
            mean, var = self._before(arrays, running_mean, running_var)
            first, second = wanted(arrays, mean, var)
            if batch.number > 0:
                self._assign_arrays((running_mean, running_var), self._after(arrays, mean, var))
        return _in_torch(first), _in_torch(second)

    def _fits_one_kernel(self, batch: ChannelMoments) -> bool:
        """Return whether all that is asked for is what the kernel for GPUs does."""
        mean = batch.mean
        if not (mean.is_cuda and _HAS_TRITON and self._averages_once and self.observe is None):
            return False
        if type(mean) is not Tensor or is_traced() or not isinstance(batch.number, int):
            return False
        vectors = (mean, batch.var, self.running_mean, self.running_var)
        scalars = (self.r_max, self.d_max, self.momentum, self.first, self.counter)
        return (
            len(mean) <= MAX_CHANNELS
            and all(t.is_cuda and t.dtype == torch.float32 and t.is_contiguous() for t in vectors)
            and all(t.is_cuda for t in scalars if isinstance(t, Tensor))
        )

    def _step_in_one_kernel(self, batch: ChannelMoments) -> tuple[Tensor, Tensor]:
        from bioren.nn.fused import fused_step

        return fused_step(
            batch.mean.detach(),
            batch.var.detach(),
            batch.number,  # type: ignore[arg-type]  # it is a number, see above
            running_mean=self.running_mean,
            running_var=self.running_var,
            momentum=self.momentum,
            eps=self.eps,
            r_max=self.r_max,
            d_max=self.d_max,
            first=self.first,
            counter=self.counter,
        )

    def _assign_arrays(self, running: tuple[Array, Array], new: tuple[Array, Array]) -> None:
        if _all_finite(*new):
            running[0][...], running[1][...] = new
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


def _several_in(input: Tensor) -> bool:
    """Whether channels have more than a value; torch would take the variance of one for NaN."""
    return input.numel() > input.shape[1]


def _in_numpy(tensor: Tensor) -> Any:
    """Return the same memory as a NumPy array, which serves in the place of a tensor here."""
    return tensor.numpy()


def _in_torch(array: Any) -> Tensor:
    return torch.from_numpy(array)


def _all_finite(mean: Any, var: Any) -> bool:
    # A value that is not finite makes the sum so.
    return math.isfinite(np.add.reduce(mean + var, dtype=np.float64))


MAX_CHANNELS = 8192
"""All channels are in the registers of one block; beyond this number they do not fit."""
_HAS_TRITON = importlib.util.find_spec("triton") is not None
