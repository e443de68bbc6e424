"""Forward passes that run again while gradients are made, as activation checkpointing has them.

Such a pass has to see the r and d of the first one, although the running statistics have moved on,
and must not count twice.  torch has no hook for that.  But a pass run again happens inside of a
backward pass, and its minibatch has the moments of the first one, by which it is recognised.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Recollection", "recomputing"]

_hooks = torch._C._autograd._top_saved_tensors_default_hooks

PASSES = 64
"""Forward passes of one layer that are remembered; older ones are forgotten."""


def recomputing() -> bool:
    """Return whether autograd is at work on this thread, so that a forward pass is a second one."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class _Pass(NamedTuple):
    mean: Tensor
    r: Tensor
    d: Tensor


class Recollection:
    """The (r, d) of a layer's latest forward passes that may run again.

    Where no checkpointing is in sight nothing is kept.  A copy or a pickle of it is empty.
    """

    def __init__(self) -> None:
        self._passes: deque[_Pass] = deque(maxlen=PASSES)

    def __reduce__(self) -> tuple[Any, ...]:
        return Recollection, ()

    @property
    def running_again(self) -> bool:
        """Whether the present forward pass is one that ran before."""
        return recomputing() and len(self._passes) > 0

    def remember(self, mean: Tensor, r: Tensor, d: Tensor) -> None:
        """Keep (r, d) of a pass whose minibatch has this mean, newest first."""
        self._passes.appendleft(_Pass(mean, r, d))

    def recall(self, mean: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return (r, d) of the pass with this mean if one is being run again, else None.

        Of several with the same mean the newest; compared on the tensors' device, so that no
        GPU is waited for.
        """
        if not self.running_again:
            return None
        kept = [p for p in self._passes if p.mean.device == mean.device]
        distance = (
            (torch.stack([p.mean for p in kept]) - mean).abs().sum(dim=1).nan_to_num(torch.inf)
        )
        age = torch.arange(len(kept), device=mean.device)
        newest = torch.where(distance == distance.min(), age, len(kept)).argmin()
        return (
            torch.stack([p.r for p in kept]).index_select(0, newest[None])[0],
            torch.stack([p.d for p in kept]).index_select(0, newest[None])[0],
        )


def may_run_again() -> bool:
    """Return whether a forward pass run now may be run again in a backward pass.

    Reentrant checkpointing runs it without gradients, the other kind hooks into what is saved.
    """
    if torch.compiler.is_compiling():
        return False
    return not torch.is_grad_enabled() or _hooks(False) is not None
