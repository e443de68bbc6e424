"""What all renormalizing layers share: options beside those of torch's layers, and their state."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bioren.nn.recomputation import Recollection, may_run_again
from bioren.nn.schedules import Bound, Mixing, as_mixing, check_choice, check_share, readable
from bioren.nn.tracking import Moving, Observer, Tracker

__all__ = [
    "SHAPES_1D",
    "SHAPES_2D",
    "SHAPES_3D",
    "Initial",
    "RenormBase",
    "check_average",
    "check_shape",
]

SETTLED = 8
"""After so many horizons of the average, ``1 / momentum`` minibatches each, nothing is left of its
beginning, and the limits are open."""

SHAPES_1D, SHAPES_2D, SHAPES_3D = {2: "", 3: ", L"}, {4: ", H, W"}, {5: ", D, H, W"}

Initial = Literal["unit", "first_batch", "debiased"]


# Not a _BatchNorm: SyncBatchNorm.convert_sync_batchnorm would quietly turn it into plain
# batch normalization.
class RenormBase(_NormBase):
    """A layer with running statistics and a bridge to them.

    torch's base class has the parameters and buffers; their names in a state dict are torch's.
    """

    initial: Initial
    moving: Moving
    mixing: Mixing
    mixing_logit: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        **options: Any,
    ) -> None:
        check_average(eps, momentum)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        if not bias:
            self.register_parameter("bias", None)
        self.set_options(**options)

    def set_options(
        self, *, initial: Initial = "debiased", moving: Moving = "var", mixing: Mixing = 1.0
    ) -> None:
        """Set what torch's layers do not have."""
        check_choice("initial", initial, ("unit", "first_batch", "debiased"))
        check_choice("moving", moving, ("var", "std"))
        if mixing == "learned" and not self.track_running_stats:
            raise ValueError('mixing="learned" needs running statistics.')
        self.initial = initial
        self.moving = moving
        self.mixing = as_mixing(mixing)
        self.register_parameter(
            "mixing_logit", self._new_logit() if self.mixing == "learned" else None
        )
        self._recollection = Recollection()
        self._observer: Observer | None = None

    def reset_parameters(self) -> None:
        """Forget all minibatches, set weights to 1, biases to 0, learned mixing to one half."""
        self.reset_running_stats()
        # torch's constructor comes here before the mixing is there.
        for name, start in (("weight", 1.0), ("bias", 0.0), ("mixing_logit", 0.0)):
            parameter = getattr(self, name, None)
            if parameter is not None:
                nn.init.constant_(parameter, start)

    def count_given_statistics(self) -> None:
        """Take running statistics that come without a count of minibatches for settled ones.

        A beginning with the next minibatch would overwrite what was loaded.
        """
        mean, var, step = self.running_mean, self.running_var, self.num_batches_tracked
        if mean is None or var is None or step is None or nn.parameter.is_lazy(mean):
            return
        if mean.is_meta or self.initial == "unit" or not self.momentum or step > 0:
            return
        if mean.any() or (var != 1).any():
            step.fill_(round(SETTLED / self.momentum))

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        text: str = super().extra_repr()  # type: ignore[no-untyped-call]
        options = {"initial": self.initial, "moving": self.moving, "mixing": self.mixing}
        return ", ".join([text, *(f"{name}={value!r}" for name, value in options.items())])

    @property
    def _tracks(self) -> bool:
        """Whether this pass learns; statistics switched off later serve in evaluation only."""
        return (
            self.training and self.track_running_stats and self._buffers["running_mean"] is not None
        )

    def _mixing_now(self) -> tuple[Bound, Tensor | None]:
        """Return the share of (r, d) that is applied, or 1 and what is learned, per channel."""
        mixing = self.mixing
        if isinstance(mixing, float):
            return mixing, None
        if mixing == "learned":
            return 1.0, torch.sigmoid(cast("Tensor", self.mixing_logit))
        step = self.num_batches_tracked
        return mixing(torch.zeros((), dtype=torch.int64) if step is None else step), None

    def _tracker(self, r_max: Bound, d_max: Bound, mixing: Bound, *, counts: bool) -> Tracker:
        """Return what bridges the next minibatch to the running statistics.

        Parameters
        ----------
        r_max, d_max
            Limits on the bridge.
        mixing
            Share of it that is applied, if that has no gradient.
        counts
            Whether there is anything in the minibatch, so that it counts as a step.
        """
        running = self._buffers  # a module finds them as its attributes at a tenth of the speed
        step = cast("Tensor", running["num_batches_tracked"])
        mean, var = cast("Tensor", running["running_mean"]), cast("Tensor", running["running_var"])
        momentum: Bound
        first: bool | Tensor = False
        if self.initial == "unit" and self.momentum is not None:
            momentum, counter = self.momentum, None
            if counts and not self._recollection.running_again:
                step.add_(1)
        else:
            before = readable(step)
            momentum = momentum_at(
                before, self.momentum, debiased=self.initial == "debiased", dtype=mean.dtype
            )
            first = self.initial != "unit" and self.momentum != 0 and before == 0
            # The number decides what a minibatch weighs: only those that are let in count.
            counter = step if counts else None
        return Tracker(
            mean,
            var,
            momentum=momentum,
            eps=self.eps,
            r_max=r_max,
            d_max=d_max,
            mixing=mixing,
            moving=self.moving,
            first=first,
            counter=counter,
            recollection=self._recollection if may_run_again() else None,
            observe=self._observer,
        )

    def _new_logit(self) -> nn.Parameter:
        like: Any = self.weight if self.running_mean is None else self.running_mean
        if isinstance(like, nn.UninitializedParameter | nn.UninitializedBuffer):
            of: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
            return cast("nn.Parameter", nn.UninitializedParameter(**of))
        return nn.Parameter(
            torch.zeros(self.num_features) if like is None else torch.zeros_like(like.detach())
        )

    def _check_input(self, input: Tensor) -> None:
        self._check_input_dim(input)
        if not input.is_floating_point():
            raise TypeError(f"expected input of a floating point dtype, received {input.dtype}.")

    def _check_input_dim(self, input: Tensor) -> None:
        raise NotImplementedError


def momentum_at(
    before: int | Tensor, momentum: float | None, *, debiased: bool, dtype: torch.dtype
) -> Bound:
    """Return the share of a minibatch in the average after `before` others, of `dtype`."""
    if isinstance(before, Tensor):
        before = before.to(torch.promote_types(dtype, torch.float32))
    if momentum is None:
        return 1 / (before + 1)
    if debiased and momentum > 0:
        # The weights of all minibatches, the first included, then sum to one, as in Adam.
        return momentum / (1 - (1 - momentum) ** (before + 1))
    return momentum


def check_average(eps: float, momentum: float | None) -> None:
    """Raise unless `eps` and `momentum` are what a layer can normalize and average with."""
    if not eps > 0:
        raise ValueError(f"eps must be positive, received {eps}.")
    if momentum is not None:
        check_share("momentum", momentum)


def check_shape(input: Tensor, channels: int, shapes: dict[int, str]) -> None:
    """Raise unless `input` is ``(N, channels)`` and has one of these numbers of dimensions.

    `shapes` tells for each of them what follows in the message, such as ``", H, W"``.
    """
    if input.dim() not in shapes or input.shape[1] != channels:
        possible = " or ".join(f"(N, {channels}{rest})" for rest in shapes.values())
        msg = f"expected input of shape {possible}, received {tuple(input.shape)}."
        raise ValueError(msg)
