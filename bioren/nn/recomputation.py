"""Forward passes that run again while gradients are made, as activation checkpointing has them.

Such a pass has to see the r and d of the first one, although the running statistics have moved on,
and must not count twice.  torch has no hook for that.  But a pass run again happens inside of a
backward pass, and its minibatch has the moments of the first one, by which it is recognised.

Compiled code asks for neither, so that `torch.compile` and checkpointing do not go together.
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
    kept: tuple[Tensor, ...]


class Recollection:
    """What a layer's latest forward passes that may run again were bridged by, r and d say.

    Where no checkpointing is in sight nothing is kept.  A copy or a pickle of it is empty.
    """

    def __init__(self) -> None:
        self._passes: deque[_Pass] = deque(maxlen=PASSES)

    def __reduce__(self) -> tuple[Any, ...]:
        return Recollection, ()

    def __len__(self) -> int:
        return len(self._passes)

    @property
    def running_again(self) -> bool:
        """Whether the present forward pass is one that ran before."""
        return recomputing() and len(self._passes) > 0

    def remember(self, mean: Tensor, *kept: Tensor) -> None:
        """Keep what belongs to the pass whose minibatch has this mean."""
        self._passes.append(_Pass(mean, kept))

    @torch.no_grad()
    def recall(self, mean: Tensor) -> tuple[Tensor, ...] | None:
        """Return what belongs to the pass with this mean if one is being run again, else None.

        Of several with the same mean the latest.  They are compared on the tensors' device, so
        that no GPU is waited for.
        """
        passes = [known for known in self._passes if known.mean.device == mean.device]
        if not passes or not recomputing():
            return None
        away = torch.stack([(known.mean - mean).abs().sum() for known in passes])
        nearest = away.nan_to_num(torch.inf)  # the mean of a pass may not be finite
        order = torch.arange(len(passes), device=mean.device)
        latest = torch.where(nearest == nearest.min(), order, -1).argmax()[None]
        candidates = zip(*(known.kept for known in passes), strict=True)
        return tuple(torch.stack(values).index_select(0, latest)[0] for values in candidates)


def may_run_again() -> bool:
    """Return whether a forward pass run now is, or may be, run again in a backward pass.

    Reentrant checkpointing runs it without gradients, the other kind hooks into what is saved.
    """
    if torch.compiler.is_compiling():
        return False
    return recomputing() or not torch.is_grad_enabled() or _hooks(False) is not None
