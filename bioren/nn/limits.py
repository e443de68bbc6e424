"""The limits (r_max, d_max) of Batch Renormalization as functions of the training step.

A schedule keeps no state of its own: it reads the layer's buffer ``num_batches_tracked``, so it
is right after ``load_state_dict``, and it stays on the buffer's device, so nothing waits for a
GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast

import torch

__all__ = ["PAPER", "Bound", "ConstantLimits", "LimitSchedule", "LinearLimits", "as_schedule"]

Bound: TypeAlias = "float | torch.Tensor"


class LimitSchedule(Protocol):
    """Anything that turns the number of batches seen so far into ``(r_max, d_max)``."""

    def __call__(self, step: torch.Tensor) -> tuple[Bound, Bound]:
        """Return ``(r_max, d_max)``: numbers, or 0-d tensors on the device of `step`.

        Parameters
        ----------
        step
            Number of training batches seen before the present one, 0-d int64.
        """
        ...


@dataclass(frozen=True, slots=True)
class ConstantLimits:
    """The same limits at every step.

    Attributes
    ----------
    r_max, d_max
        ``1/r_max <= r <= r_max`` and ``-d_max <= d <= d_max``; ``(1, 0)`` is plain batch
        normalisation, ``(inf, inf)`` never clips.

    Raises
    ------
    ValueError
        ``r_max`` is below 1 or ``d_max`` below 0.
    """

    r_max: float
    d_max: float

    def __post_init__(self) -> None:
        if not (self.r_max >= 1 and self.d_max >= 0):
            msg = f"limits must be (r_max >= 1, d_max >= 0), received ({self.r_max}, {self.d_max})."
            raise ValueError(msg)

    def __call__(self, step: torch.Tensor) -> tuple[Bound, Bound]:
        """Return ``(r_max, d_max)``, whatever the step."""
        return self.r_max, self.d_max


@dataclass(frozen=True, slots=True)
class LinearLimits:
    """Plain batch normalisation first, then a linear ramp, then flat for ever.

    Attributes
    ----------
    start
        Up to and including this step the limits are (1, 0).
    r_end, d_end
        Steps at which the ramps of ``r_max`` and ``d_max`` end; equal to `start` for a jump
        right after it.
    r_max, d_max
        The limits from there on.

    Raises
    ------
    ValueError
        The steps are not in order, ``r_max`` is below 1, ``d_max`` below 0, or either infinite.
    """

    start: int
    r_end: int
    d_end: int
    r_max: float
    d_max: float

    def __post_init__(self) -> None:
        if not 0 <= self.start <= min(self.r_end, self.d_end):
            msg = (
                "steps must satisfy 0 <= start <= r_end and start <= d_end, received "
                f"start={self.start}, r_end={self.r_end}, d_end={self.d_end}."
            )
            raise ValueError(msg)
        if not (1 <= self.r_max < math.inf and 0 <= self.d_max < math.inf):
            msg = (
                "a ramp needs finite limits r_max >= 1 and d_max >= 0, received "
                f"r_max={self.r_max}, d_max={self.d_max}; ConstantLimits takes infinite ones."
            )
            raise ValueError(msg)

    def __call__(self, step: torch.Tensor) -> tuple[Bound, Bound]:
        """Return ``(r_max, d_max)`` at `step` as 0-d tensors on its device."""
        r_done, d_done = self._done(step, self.r_end), self._done(step, self.d_end)
        return 1 + (self.r_max - 1) * r_done, self.d_max * d_done

    def _done(self, step: torch.Tensor, end: int) -> torch.Tensor:
        # Clamped out of place at every call: a ramp that ran on would in the end flip signs.
        return ((step - self.start) / max(end - self.start, 1)).clamp(0, 1)


PAPER = LinearLimits(start=5_000, r_end=40_000, d_end=25_000, r_max=3.0, d_max=5.0)
"""The schedule of Ioffe (2017), arXiv:1702.03275, section 4."""


def as_schedule(limits: object) -> LimitSchedule:
    """Return `limits` as a schedule; a pair ``(r_max, d_max)`` stands for constant limits.

    Raises
    ------
    TypeError
        `limits` is neither.
    ValueError
        A limit lies out of range.
    """
    if isinstance(limits, tuple) and len(limits) == 2:
        return ConstantLimits(*limits)
    if callable(limits):
        return cast("LimitSchedule", limits)
    msg = (
        f"limits must be a schedule or a pair (r_max, d_max), received {limits!r}. "
        "Available schedules: bioren.nn.PAPER, LinearLimits(...), ConstantLimits(...)."
    )
    raise TypeError(msg)
