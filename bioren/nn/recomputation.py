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
    pair: tuple[Tensor, Tensor]


class Recollection:
    """What a layer's latest forward passes that may run again were bridged by.

    That is a pair of vectors: r and d, or a mean and a variance.

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

    def remember(self, mean: Tensor, pair: tuple[Tensor, Tensor]) -> None:
        """Keep the pair of a pass whose minibatch has this mean."""
        self._passes.append(_Pass(mean, pair))

    @torch.no_grad()
    def recall(self, mean: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the pair of the pass with this mean if one is being run again, else None.

        Of several with the same mean the latest.  They are compared on the tensors' device, so
        that no GPU is waited for.
        """
        if not self.running_again:
            return None
        away = torch.stack([(known.mean - mean).abs().sum() for known in self._passes])
        nearest = away.nan_to_num(torch.inf)  # the mean of a pass may not be finite
        latest = torch.where(nearest == nearest.min(), self._order(mean), -1).argmax()
        first, second = zip(*(known.pair for known in self._passes), strict=True)
        return _at(first, latest), _at(second, latest)

    def _order(self, like: Tensor) -> Tensor:
        return torch.arange(len(self._passes), device=like.device)


def _at(values: tuple[Tensor, ...], index: Tensor) -> Tensor:
    return torch.stack(values).index_select(0, index[None])[0]


def may_run_again() -> bool:
    """Return whether a forward pass run now is, or may be, run again in a backward pass.

    Reentrant checkpointing runs it without gradients, the other kind hooks into what is saved.
    """
    if torch.compiler.is_compiling():
        return False
    return recomputing() or not torch.is_grad_enabled() or _hooks(False) is not None
