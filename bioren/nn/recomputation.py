"""Forward passes that run again while gradients are made, as activation checkpointing has them.

Such a pass has to see the r and d of the first one, although the running statistics have moved on,
and must not count twice.  torch has no hook for that.  But a pass run again happens inside of a
backward pass, and its minibatch has the mean and variance of the first one, by which it is
recognized.

Compiled code asks for neither, so that `torch.compile` and checkpointing do not go together.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bioren.nn._torch import backward_is_running, saved_tensors_are_hooked

__all__ = ["Recollection", "may_run_again"]

PASSES = 64
"""Forward passes of one layer that are remembered; older ones are forgotten."""


class _Pass(NamedTuple):
    moments: Tensor
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
        return backward_is_running() and len(self._passes) > 0

    def remember(self, mean: Tensor, var: Tensor, kept: Iterable[Tensor]) -> None:
        """Keep what belongs to the pass whose minibatch has these moments."""
        self._passes.append(_Pass(torch.stack([mean, var]).detach(), tuple(kept)))

    @torch.no_grad()
    def recall(self, mean: Tensor, var: Tensor) -> tuple[Tensor, ...] | None:
        """Return what belongs to the pass with these moments if one is run again, else None.

        Of several with the same moments the latest.  They are compared on the tensors' device,
        so that no GPU is waited for.

        Warns
        -----
        UserWarning
            None is like it (looked at on the CPU only): the gradient will not be exact.
        """
        passes = [known for known in self._passes if known.moments.device == mean.device]
        if not passes or not backward_is_running():
            return None
        moments = torch.stack([mean, var])
        away = torch.stack([known.moments for known in passes]) - moments
        distance = away.abs().flatten(1).amax(1).nan_to_num(torch.inf)  # it may not be finite
        nearest = distance.min()
        if nearest.is_cpu and nearest > 1e-3 * moments.abs().max():
            warnings.warn(
                "A forward pass inside of a backward pass has the moments of none of the latest "
                f"{len(passes)} ones; if it is one that activation checkpointing runs again, it "
                "lies too far back, and its gradient is not exact.",
                stacklevel=2,
            )
            return None
        order = torch.arange(len(passes), device=mean.device)
        latest = torch.where(distance == nearest, order, -1).argmax()[None]
        candidates = zip(*(known.kept for known in passes), strict=True)
        return tuple(torch.stack(values).index_select(0, latest)[0] for values in candidates)


def may_run_again() -> bool:
    """Return whether a forward pass run now is, or may be, run again in a backward pass.

    Reentrant checkpointing runs it without gradients, the other kind hooks into what is saved.
    """
    if torch.compiler.is_compiling():
        return False
    return backward_is_running() or not torch.is_grad_enabled() or saved_tensors_are_hooked()
