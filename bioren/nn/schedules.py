"""What changes over the training: the limits (r_max, d_max), and how much of (r, d) is applied.

A schedule keeps no state of its own: it reads the layer's buffer ``num_batches_tracked``, so it
is right after ``load_state_dict``.  On a GPU it stays on the buffer's device, so that nothing
waits; on a CPU it reads the number, anew at each step, as that is the quicker way there.

With a mixing m the bridge that is applied is ``r**m`` and ``m * d``: 0 normalizes by the
minibatch's (or the instance's, or the sample's) own statistics, 1 goes all the way to the shared
ones.  Batch-instance normalization (Nam & Kim 2018, arXiv:1805.07925) learns such a gate between
two normalizations per channel; here it stands between the two ends of one bridge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self, TypeAlias, cast

import torch
from torch import Tensor

from bioren.nn._torch import is_readable

__all__ = [
    "CROSSQ",
    "PAPER",
    "Bound",
    "BySamples",
    "ConstantLimits",
    "LimitSchedule",
    "Limits",
    "LinearLimits",
    "LinearMixing",
    "Mixing",
    "StepLimits",
    "as_mixing",
    "as_schedule",
    "check_choice",
    "check_share",
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


Limits: TypeAlias = "LimitSchedule | Sequence[float]"
"""A schedule, or a pair ``(r_max, d_max)`` that holds at every step."""


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
        normalization, ``(inf, inf)`` never clips.

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
    """Plain batch normalization first, then a linear ramp, then flat for ever.

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

    @classmethod
    def paper(cls, total_steps: int) -> Self:
        """Return the schedule of the paper for a training of another length.

        A twentieth of it is plain batch normalization; d reaches its limit after a quarter, r after
        two fifths.  `PAPER` is that of 100,000 steps.

        Parameters
        ----------
        total_steps
            Number of minibatches of the whole training, at least 1.

        Raises
        ------
        ValueError
            `total_steps` is below 1.
        """
        if total_steps < 1 or total_steps != int(total_steps):
            raise ValueError(f"total_steps must be a number of 1 or more, received {total_steps}.")
        start, r_end, d_end = (
            total_steps * steps // 100_000 for steps in (PAPER.start, PAPER.r_end, PAPER.d_end)
        )
        return cls(start, r_end, d_end, PAPER.r_max, PAPER.d_max)

    @classmethod
    def gradual(cls, momentum: float | None) -> Self:
        """Return limits that open as fast as the running statistics can be trusted.

        The unit of time is the horizon of the average, ``1 / momentum`` minibatches: d reaches its
        limit of 5 after five of them, r its limit of 3 after eight.  These are the proportions of
        `PAPER`, whose wait with batch normalization is left out, as statistics that are free of
        their beginning (``initial="debiased"``) do not need it.  So it works in short and in long
        trainings alike (`benchmarks/layers/defaults.py`).

        Parameters
        ----------
        momentum
            Of the layer.  With None, a mean of all minibatches, the horizon is that of 0.01; with
            0 the statistics do not move, and the limits are open after the first step.
        """
        if momentum == 0:
            return cls(0, 0, 0, PAPER.r_max, PAPER.d_max)
        horizon = min(1 / (0.01 if momentum is None else momentum), 1e15)
        r_end, d_end = (
            round(horizon * steps / PAPER.start) for steps in (PAPER.r_end, PAPER.d_end)
        )
        return cls(0, r_end, d_end, PAPER.r_max, PAPER.d_max)

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
CROSSQ = StepLimits(((100_000, 3.0, 5.0),))
"""Batch normalization for 100,000 steps, then the paper's limits at once, as in CrossQ (Bhatt et
al. 2024, arXiv:1902.05605)."""


def as_schedule(limits: object) -> LimitSchedule:
    """Return `limits` as a schedule; a pair ``(r_max, d_max)`` stands for constant limits.

    Raises
    ------
    TypeError
        `limits` is neither.
    ValueError
        A limit lies out of range.
    """
    if isinstance(limits, tuple | list) and len(limits) == 2:
        return ConstantLimits(*limits)
    if callable(limits):
        return cast("LimitSchedule", limits)
    msg = (
        f"limits must be a schedule or a pair (r_max, d_max), received {limits!r}. "
        "Available schedules: bioren.nn.PAPER, CROSSQ, LinearLimits(...), StepLimits(...), "
        "ConstantLimits(...), BySamples(...)."
    )
    raise TypeError(msg)


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
    check_share("mixing", mixing)
    return float(mixing)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, received {value!r}.")


def check_share(name: str, value: object) -> None:
    """Raise unless `value`, if it is a number, lies in [0, 1]."""
    if isinstance(value, Tensor):
        return
    if not isinstance(value, float | int):
        raise TypeError(f"{name} must be a number in [0, 1], received {value!r}.")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], received {value}.")
