"""How much of (r, d) a layer applies.

With a share m the bridge is ``r**m`` and ``m * d``: 0 normalises by the minibatch's (or the
instance's) own statistics, 1 goes all the way to the target's.  Batch-instance normalisation (Nam
& Kim 2018, arXiv:1805.07925) learns such a gate between two normalisations per channel; here it
stands between the two ends of one bridge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from bioren.nn.limits import Bound, ramp, readable

__all__ = ["LinearMixing", "Mixing", "as_mixing"]

Mixing: TypeAlias = float | Callable[[Tensor], Bound] | Literal["learned"]
"""A share in [0, 1]; a schedule of it, called with the number of batches seen; or "learned"."""


@dataclass(frozen=True, slots=True)
class LinearMixing:
    """A share that moves evenly from one value to another, and stays.

    Attributes
    ----------
    start, end
        Steps between which it moves.
    first, last
        Shares up to `start` and from `end` on, in [0, 1].

    Raises
    ------
    ValueError
        The steps are not in order, or a share lies outside [0, 1].
    """

    start: int
    end: int
    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            msg = f"steps must satisfy 0 <= start <= end, received {self.start}, {self.end}."
            raise ValueError(msg)
        for share in (self.first, self.last):
            as_mixing(share)

    def __call__(self, step: Tensor) -> Bound:
        """Return the share at `step`: a number, or a 0-d tensor on its device."""
        done = ramp(readable(step), self.start, self.end)
        return self.first + (self.last - self.first) * done


def as_mixing(mixing: object) -> Mixing:
    """Return `mixing` if it is one.

    Raises
    ------
    TypeError
        It is neither a number, nor callable, nor "learned".
    ValueError
        It is a number outside [0, 1].
    """
    if mixing == "learned":
        return "learned"
    if callable(mixing):
        return mixing
    if not isinstance(mixing, float | int):
        msg = f'mixing must be a number in [0, 1], a schedule or "learned", received {mixing!r}.'
        raise TypeError(msg)
    if not 0 <= mixing <= 1:
        raise ValueError(f"mixing must lie in [0, 1], received {mixing}.")
    return float(mixing)


def share_at(mixing: Mixing, logit: Tensor | None, step: Tensor | None) -> float | Tensor:
    """Return the share that holds now: per channel if it is learned, else one number."""
    if logit is not None:
        return torch.sigmoid(logit)
    if callable(mixing):
        return mixing(torch.zeros((), dtype=torch.int64) if step is None else step)
    return mixing  # type: ignore[return-value]  # "learned" has a logit
