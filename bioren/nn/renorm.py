"""Batch Renormalization as layers that take the place of torch's batch normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _LazyNormBase, _NormBase

from bioren.nn.functional import evaluate, in_dtype, value_weights
from bioren.nn.limits import (
    PAPER,
    BySamples,
    LimitSchedule,
    as_schedule,
    readable,
)
from bioren.nn.mixing import Mixing, as_mixing, share_at
from bioren.nn.moments import statistics_dtype
from bioren.nn.recomputation import Recollection, may_run_again
from bioren.nn.renormalization import renormalize
from bioren.nn.tracking import Moving, Observer, Tracker

if TYPE_CHECKING:
    from torch.nn.parameter import UninitializedParameter

__all__ = [
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "LazyBatchRenorm1d",
    "LazyBatchRenorm2d",
    "LazyBatchRenorm3d",
]

Initial = Literal["unit", "first_batch", "debiased"]
_OPTIONS = (
    "limits",
    "initial",
    "moving",
    "mixing",
    "mixing_logit",
    "num_samples_tracked",
    "_recollection",
    "_observer",
)


# Not a _BatchNorm: SyncBatchNorm.convert_sync_batchnorm would quietly turn it into plain
# batch normalisation.
class _BatchRenorm(_NormBase):
    """Batch Renormalization for any shape; subclasses check the number of dimensions."""

    limits: LimitSchedule
    num_samples_tracked: Tensor | None
    mixing_logit: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        limits: LimitSchedule | tuple[float, float] = PAPER,
        initial: Initial = "unit",
        moving: Moving = "var",
        mixing: Mixing = 1.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        if not bias:
            self.register_parameter("bias", None)
        self.set_options(limits=limits, initial=initial, moving=moving, mixing=mixing)

    def set_options(
        self,
        *,
        limits: LimitSchedule | tuple[float, float] = PAPER,
        initial: Initial = "unit",
        moving: Moving = "var",
        mixing: Mixing = 1.0,
        **others: float | None,
    ) -> None:
        """Set what batch normalisation does not have, and momentum or eps if given."""
        _check_choice("initial", initial, ("unit", "first_batch", "debiased"))
        _check_choice("moving", moving, ("var", "std"))
        for name, value in others.items():
            _check_choice("option", name, ("momentum", "eps"))
            setattr(self, name, value)
        self.limits = as_schedule(limits)
        self.initial = initial
        self.moving = moving
        self.mixing = as_mixing(mixing)
        self.register_parameter(
            "mixing_logit", self._new_logit() if self.mixing == "learned" else None
        )
        rows = None
        if isinstance(self.limits, BySamples) and self.num_batches_tracked is not None:
            rows = torch.zeros_like(self.num_batches_tracked)
        self.register_buffer("num_samples_tracked", rows)
        self._recollection = Recollection()
        self._observer: Observer | None = None

    def _new_logit(self) -> nn.Parameter:
        like: Any = self.weight if self.running_mean is None else self.running_mean
        if isinstance(like, nn.UninitializedParameter | nn.UninitializedBuffer):
            of: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
            return cast("nn.Parameter", nn.UninitializedParameter(**of))
        return nn.Parameter(
            torch.zeros(self.num_features) if like is None else torch.zeros_like(like.detach())
        )

    def drop_options(self) -> None:
        """Delete all that `set_options` has set."""
        for name in _OPTIONS:
            delattr(self, name)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return `input` normalised.

        Parameters
        ----------
        input
            Floating point; statistics of float16 and bfloat16 are in float32.
        mask
            Which values count in the statistics, or how much; see
            `bioren.nn.functional.batch_renorm`.  Has no effect in evaluation.

        Returns
        -------
        torch.Tensor
            Of the shape and dtype of `input`.

        Raises
        ------
        ValueError
            `input` or `mask` has another shape.
        """
        self._check_input_dim(input)
        if not (self.training or self.running_mean is None):
            return evaluate(
                input, self.running_mean, self.running_var, self.weight, self.bias, self.eps
            )
        # As in torch, statistics switched off after construction serve in evaluation only.
        share: float | Tensor = 1.0
        tracker = None
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            share = share_at(self.mixing, self.mixing_logit, self.num_batches_tracked)
            tracker = self._tracker(input, self.num_batches_tracked)
        dtype = statistics_dtype(input)
        return self._normalize(
            input,
            in_dtype(self.weight, dtype),
            in_dtype(self.bias, dtype),
            tracker,
            None if mask is None else value_weights(mask, input),
            share,
        )

    def _normalize(
        self,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        tracker: Tracker | None,
        mask: Tensor | None,
        mixing: float | Tensor,
    ) -> Tensor:
        return renormalize(input, weight, bias, self.eps, tracker, mask=mask, mixing=mixing)

    def _tracker(self, input: Tensor, step: Tensor) -> Tracker:
        """Return what bridges this minibatch to the running statistics, and count it."""
        rows = self.num_samples_tracked
        r_max, d_max = self.limits(step if rows is None else rows)
        before = readable(step)
        momentum: float | Tensor
        if self.momentum is None:
            momentum = 1 / (before + 1)
        elif self.initial == "debiased":
            # The weights of all minibatches, the first included, then sum to one, as in Adam.
            momentum = self.momentum / (1 - (1 - self.momentum) ** (before + 1))
        else:
            momentum = self.momentum
        again = self._recollection.running_again
        if self._counts(input) and not again:
            step.add_(1)
            if rows is not None:
                rows.add_(len(input))
        return Tracker(
            self.running_mean,  # type: ignore[arg-type]  # there is one where there is a step
            self.running_var,  # type: ignore[arg-type]
            momentum,
            self.eps,
            r_max,
            d_max,
            self.moving,
            False if self.initial == "unit" else before == 0,
            self._recollection if again or may_run_again() else None,
            self._observer,
        )

    def _counts(self, input: Tensor) -> bool:
        """Return whether this is a minibatch at all."""
        return input.numel() > 0

    def reset_running_stats(self) -> None:
        """Forget all minibatches."""
        super().reset_running_stats()
        rows = getattr(self, "num_samples_tracked", None)
        if rows is not None:
            rows.zero_()

    def reset_parameters(self) -> None:
        """Forget all minibatches, set weights to 1, biases to 0, learned mixing to one half."""
        self.reset_running_stats()
        # torch's constructor comes here before the mixing is there.
        for name, start in (("weight", 1.0), ("bias", 0.0), ("mixing_logit", 0.0)):
            parameter = getattr(self, name, None)
            if parameter is not None:
                nn.init.constant_(parameter, start)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        parts = [super().extra_repr(), f"limits={self.limits}"]  # type: ignore[no-untyped-call]
        usual = {"initial": "unit", "moving": "var", "mixing": 1.0}
        parts += [f"{k}={getattr(self, k)!r}" for k, v in usual.items() if getattr(self, k) != v]
        return ", ".join(parts)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Of batch normalisation nobody knows how many rows it saw: the schedule starts anew.
        rows = self.num_samples_tracked
        if rows is not None and rows.device.type != "meta":
            state_dict.setdefault(f"{prefix}num_samples_tracked", torch.zeros_like(rows))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_input_dim(self, input: Tensor) -> None:
        raise NotImplementedError


class BatchRenorm1d(_BatchRenorm):
    """Batch Renormalization of ``(N, C)`` or ``(N, C, L)``, in the place of `nn.BatchNorm1d`.

    Training normalises by the minibatch and corrects, within limits, towards the running
    statistics that evaluation uses: both then compute the same, and minibatches that are small
    or not drawn independently do no harm.  See `bioren.nn.functional.batch_renorm`.

    The running statistics start at mean 0 and variance 1, which say nothing of the data.  The
    schedule `PAPER` therefore begins with 5,000 steps of plain batch normalisation.  Constant
    limits hold from the first step on, so that a first batch far from (0, 1) is left partly
    un-normalised: give them to layers whose statistics are loaded.

    The state dict has the keys of `nn.BatchNorm1d` and loads both ways; a loaded
    ``num_batches_tracked`` is the step of the schedule.  As with every normalisation by the
    minibatch, a single row of two dimensions lies at its own mean: its output is right, within
    the limits, and its input gradient zero.

    Parameters
    ----------
    num_features
        Number of channels C.
    eps
        Added to every variance.
    momentum
        Share of a minibatch in the running statistics; None for the mean of all minibatches.
    affine
        Whether to learn a weight and a bias per channel.
    track_running_stats
        If False there are no running statistics, and the layer is plain batch normalisation in
        training and evaluation alike.
    limits
        A schedule (`PAPER`, `LinearLimits`, or any callable of the step; a picklable one, if
        the layer is to be pickled), or a pair ``(r_max, d_max)`` that holds at every step.
    initial
        What the running statistics begin as: "unit", mean 0 and variance 1, as in torch;
        "first_batch", the moments of the first minibatch; or "debiased", which in addition weighs
        all minibatches as if the average had no beginning (Kingma & Ba 2015, arXiv:1412.6980,
        section 3).
    moving
        Whether variances ("var", as in torch) or standard deviations ("std", as in the paper) are
        averaged.  The buffer holds a variance either way.
    mixing
        Share of the way from the minibatch's statistics to the running ones, within the limits: a
        number in [0, 1], a schedule such as `LinearMixing`, or "learned", one per channel.
    bias
        If False there is a weight without a bias.
    device, dtype
        Of parameters and buffers.

    Raises
    ------
    ValueError
        On forward, if the input has neither two nor three dimensions or another number of
        channels.

    References
    ----------
    Ioffe (2017), *Batch Renormalization*, arXiv:1702.03275.

    Examples
    --------
    >>> import torch
    >>> layer = BatchRenorm1d(3, limits=(3.0, 5.0))
    >>> layer(torch.randn(8, 3)).shape
    torch.Size([8, 3])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        _check_shape(input, self.num_features, {2: "", 3: ", L"})


class BatchRenorm2d(_BatchRenorm):
    """Batch Renormalization of ``(N, C, H, W)``, in the place of `nn.BatchNorm2d`.

    All else is as in `BatchRenorm1d`.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        _check_shape(input, self.num_features, {4: ", H, W"})


class BatchRenorm3d(_BatchRenorm):
    """Batch Renormalization of ``(N, C, D, H, W)``, in the place of `nn.BatchNorm3d`.

    All else is as in `BatchRenorm1d`.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        _check_shape(input, self.num_features, {5: ", D, H, W"})


class _LazyBatchRenorm(_LazyNormBase, _BatchRenorm):
    """A layer that takes its number of channels from the first input."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        limits: LimitSchedule | tuple[float, float] = PAPER,
        initial: Initial = "unit",
        moving: Moving = "var",
        mixing: Mixing = 1.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if not bias:
            self.register_parameter("bias", None)
        # Again, now that there are parameters to become as large as.
        self.set_options(limits=limits, initial=initial, moving=moving, mixing=mixing)

    def initialize_parameters(self, input: Tensor) -> None:  # type: ignore[override]
        """Give parameters and buffers the input's number of channels."""
        logit: UninitializedParameter | nn.Parameter | None = self.mixing_logit
        if isinstance(logit, nn.UninitializedParameter):
            logit.materialize((input.shape[1],))
        super().initialize_parameters(input)


class LazyBatchRenorm1d(_LazyBatchRenorm, BatchRenorm1d):
    """`BatchRenorm1d` that takes its number of channels from the first input."""

    cls_to_become = BatchRenorm1d


class LazyBatchRenorm2d(_LazyBatchRenorm, BatchRenorm2d):
    """`BatchRenorm2d` that takes its number of channels from the first input."""

    cls_to_become = BatchRenorm2d


class LazyBatchRenorm3d(_LazyBatchRenorm, BatchRenorm3d):
    """`BatchRenorm3d` that takes its number of channels from the first input."""

    cls_to_become = BatchRenorm3d


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, received {value!r}.")


def _check_shape(input: Tensor, channels: int, positions: dict[int, str]) -> None:
    if input.dim() not in positions or input.shape[1] != channels:
        possible = " or ".join(f"(N, {channels}{rest})" for rest in positions.values())
        msg = f"expected input of shape {possible}, received {tuple(input.shape)}."
        raise ValueError(msg)
