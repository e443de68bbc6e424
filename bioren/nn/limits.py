"""The limits (r_max, d_max) of Batch Renormalization as functions of the training step.

A schedule keeps no state of its own: it reads the layer's buffer ``num_batches_tracked``, so it
is right after ``load_state_dict``.  On a GPU it stays on the buffer's device, so that nothing
waits; on a CPU it reads the number, anew at each step, as that is the quicker way there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast

import torch

from bioren.nn.tracing import is_readable

__all__ = [
    "PAPER",
    "Bound",
    "BySamples",
    "ConstantLimits",
    "LimitSchedule",
    "LinearLimits",
    "StepLimits",
    "as_schedule",
    "ramp",
    "readable",
]

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


def readable(step: torch.Tensor) -> int | torch.Tensor:
    """Return `step` as a number where reading it holds up nothing, else as it is."""
    return int(step) if is_readable(step) else step


def ramp(step: int | torch.Tensor, start: int, end: int) -> Bound:
    """Return the share of the way from `start` to `end` at `step`, in [0, 1]."""
    # Clamped out of place at every call: a ramp that ran on would in the end flip signs.
    done = (step - start) / max(end - start, 1)
    return done.clamp(0, 1) if isinstance(done, torch.Tensor) else min(max(done, 0.0), 1.0)


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
        """Return ``(r_max, d_max)`` at `step`: numbers, or 0-d tensors on its device."""
        at = readable(step)
        r_done, d_done = ramp(at, self.start, self.r_end), ramp(at, self.start, self.d_end)
        return 1 + (self.r_max - 1) * r_done, self.d_max * d_done


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Limits that jump at given steps and stay from the last one on.

    Attributes
    ----------
    jumps
        ``(step, r_max, d_max)`` in the order of the steps: limits that hold from this step on.
        Before the first they are (1, 0).

    Raises
    ------
    ValueError
        There is no jump, a step is negative or not above the one before, or a limit lies out of
        range.

    Examples
    --------
    >>> StepLimits(((0, 1.0, 0.0), (1_000, 1.5, 1.0), (5_000, 3.0, 5.0)))(torch.tensor(2_000))
    (1.5, 1.0)
    """

    jumps: tuple[tuple[int, float, float], ...]

    def __post_init__(self) -> None:
        steps = [step for step, _, _ in self.jumps]
        if not steps or steps[0] < 0 or sorted(set(steps)) != steps:
            msg = f"jumps must have increasing steps from 0 on, received steps {steps}."
            raise ValueError(msg)
        for _, r_max, d_max in self.jumps:
            ConstantLimits(r_max, d_max)  # raises if out of range

    def __call__(self, step: torch.Tensor) -> tuple[Bound, Bound]:
        """Return ``(r_max, d_max)`` at `step`: numbers, or 0-d tensors on its device."""
        at = readable(step)
        r_max: Bound = 1.0
        d_max: Bound = 0.0
        for start, r_next, d_next in self.jumps:
            if isinstance(at, torch.Tensor):
                r_max, d_max = (
                    _chosen(at >= start, r_next, r_max),
                    _chosen(at >= start, d_next, d_max),
                )
            elif at >= start:
                r_max, d_max = r_next, d_next
        return r_max, d_max


def _chosen(condition: torch.Tensor, value: float, other: Bound) -> torch.Tensor:
    one = torch.ones((), device=condition.device)
    return torch.where(condition, one * value, one * other)


@dataclass(frozen=True, slots=True)
class BySamples:
    """A schedule in rows of the input instead of steps, whatever the size of the minibatches.

    The layer then counts the rows that it was trained on, in a buffer ``num_samples_tracked``,
    which `torch.nn.BatchNorm1d` does not have.

    Attributes
    ----------
    schedule
        Called with the number of rows seen.

    Examples
    --------
    The paper's schedule at minibatches of 32, whatever their size is now:

    >>> limits = BySamples(LinearLimits(160_000, 1_280_000, 800_000, 3.0, 5.0))
    >>> limits(torch.tensor(800_000))[1]
    5.0
    """

    schedule: LimitSchedule

    def __call__(self, step: torch.Tensor) -> tuple[Bound, Bound]:
        """Return ``(r_max, d_max)`` after `step` rows."""
        return self.schedule(step)


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
        "Available schedules: bioren.nn.PAPER, LinearLimits(...), StepLimits(...), "
        "ConstantLimits(...), BySamples(...)."
    )
    raise TypeError(msg)
