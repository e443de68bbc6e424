"""Batch Renormalization as layers that take the place of torch's batch normalization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _LazyNormBase

from bioren.nn._torch import leaf_of
from bioren.nn.averaging import BackwardAverages
from bioren.nn.base import (
    SHAPES_1D,
    SHAPES_2D,
    SHAPES_3D,
    Initial,
    RenormBase,
    check_average,
    check_shape,
)
from bioren.nn.channel_moments import ValueWeights, statistics_dtype
from bioren.nn.functional import evaluate, in_dtype, value_weights
from bioren.nn.renormalization import renormalize
from bioren.nn.schedules import (
    Bound,
    BySamples,
    Limits,
    LimitSchedule,
    LinearLimits,
    Mixing,
    as_schedule,
)
from bioren.nn.tracking import Moving, Observer, Tracker

__all__ = [
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "LazyBatchRenorm1d",
    "LazyBatchRenorm2d",
    "LazyBatchRenorm3d",
]


class _BatchRenorm(RenormBase):
    """Batch Renormalization for any shape; subclasses check the number of dimensions."""

    num_samples_tracked: Tensor | None
    backward_averages: BackwardAverages | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        limits: Limits | None = None,
        initial: Initial = "debiased",
        moving: Moving = "var",
        mixing: Mixing = 1.0,
        average_backward: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            limits=limits,
            initial=initial,
            moving=moving,
            mixing=mixing,
            average_backward=average_backward,
            bias=bias,
        )

    def set_options(
        self,
        *,
        limits: Limits | None = None,
        average_backward: int | None = None,
        **options: Any,
    ) -> None:
        """Set what batch normalization does not have."""
        super().set_options(**options)
        self.register_buffer("num_samples_tracked", None)
        self.limits = LinearLimits.gradual(self.momentum) if limits is None else limits
        self.backward_averages = None
        if average_backward is not None:
            if self.mixing == "learned":
                msg = 'average_backward goes with a fixed or scheduled mixing, not with "learned".'
                raise ValueError(msg)
            like = self.weight if self.running_mean is None else self.running_mean
            self.backward_averages = BackwardAverages(average_backward, like)

    @property
    def limits(self) -> LimitSchedule:
        """The schedule of (r_max, d_max); a pair that is assigned stands for constant limits."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = as_schedule(limits)
        step = self.num_batches_tracked
        if isinstance(self._limits, BySamples) and step is not None:
            if self.num_samples_tracked is None:  # rows before now were not counted
                self.num_samples_tracked = torch.zeros_like(step)
        else:
            self.num_samples_tracked = None

    def observe(self, observer: Observer | None) -> Observer | None:
        """Have `observer` told of r and d at each training step; return the one before it."""
        before, self._observer = self._observer, observer
        return before

    def drop_options(self) -> None:
        """Delete all that `set_options` has set."""
        for name in _OPTIONS:
            delattr(self, name)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return `input` normalized.

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
            `input` or `mask` has another shape, or there is a mask besides averaged backward
            statistics.
        TypeError
            `input` is not floating point.
        """
        node = leaf_of(self, input) if mask is None else leaf_of(self, input, mask)
        if node is not None:
            return node
        self._check_input(input)
        if mask is not None and self.backward_averages is not None:
            raise ValueError("average_backward does not go with a mask; leave one of them out.")
        if not (self.training or self.running_mean is None):
            return evaluate(
                input,
                self.running_mean,
                self.running_var,
                weight=self.weight,
                bias=self.bias,
                eps=self.eps,
            )
        weights = None if mask is None else value_weights(mask, input)
        tracker = learned = None
        if self._tracks:
            mixing, learned = self._mixing_now()
            tracker = self._counted(input, mixing)
        dtype = statistics_dtype(input)
        weight, bias = in_dtype(self.weight, dtype), in_dtype(self.bias, dtype)
        learned = in_dtype(learned, dtype)
        return self._normalize(
            input, weight, bias, tracker=tracker, weights=weights, learned=learned
        )

    def _normalize(
        self,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        tracker: Tracker | None,
        weights: ValueWeights | None,
        learned: Tensor | None,
    ) -> Tensor:
        return renormalize(
            input,
            weight,
            bias,
            eps=self.eps,
            tracker=tracker,
            weights=weights,
            learned=learned,
            averages=self.backward_averages if self.training else None,
        )

    def _counted(self, input: Tensor, mixing: Bound) -> Tracker:
        """Return what bridges this minibatch to the running statistics, and count it."""
        rows = self._buffers["num_samples_tracked"]
        step = self._buffers["num_batches_tracked"] if rows is None else rows
        r_max, d_max = self._limits(step)  # type: ignore[arg-type]
        if rows is not None and not self._recollection.running_again:
            rows.add_(len(input))
        return self._tracker(
            _number(r_max), _number(d_max), mixing, counts=self._is_minibatch(input)
        )

    def _is_minibatch(self, input: Tensor) -> bool:
        return input.numel() > 0

    def reset_running_stats(self) -> None:
        """Forget all minibatches."""
        super().reset_running_stats()
        # torch's constructor comes here, too, before there is any of this.
        rows = getattr(self, "num_samples_tracked", None)
        if rows is not None:
            rows.zero_()
        averages = getattr(self, "backward_averages", None)
        if averages is not None:
            averages.reset()

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        averages = self.backward_averages
        more = "" if averages is None else f", average_backward={averages.size}"
        return f"{super().extra_repr()}, limits={self.limits}{more}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}running_mean" in state_dict:
            # Of batch normalization nobody knows how many rows it saw: the schedule starts anew.
            if self.num_samples_tracked is not None:
                none = torch.zeros((), dtype=torch.int64)
                state_dict.setdefault(f"{prefix}num_samples_tracked", none)
            # Nor has it a mixing: that stays as it is.
            if self.mixing_logit is not None:
                logit: Tensor = self.mixing_logit
                if isinstance(logit, nn.UninitializedParameter):
                    logit = torch.zeros_like(state_dict[f"{prefix}running_mean"])
                state_dict.setdefault(f"{prefix}mixing_logit", logit)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.count_given_statistics()


def _number(bound: Bound) -> Bound:
    """Return `bound` as torch's or Python's: NumPy's would turn all it meets into float64."""
    return bound if isinstance(bound, Tensor) else float(bound)


_OPTIONS = (
    "initial",
    "moving",
    "mixing",
    "mixing_logit",
    "_limits",
    "num_samples_tracked",
    "backward_averages",
    "_recollection",
    "_observer",
)


class BatchRenorm1d(_BatchRenorm):
    """Batch Renormalization of ``(N, C)`` or ``(N, C, L)``, in the place of `nn.BatchNorm1d`.

    Training normalizes by the minibatch and corrects, within limits, towards the running
    statistics that evaluation uses: both then compute the same, and minibatches that are small
    or not drawn independently do no harm.  See `bioren.nn.functional.batch_renorm`.

    By default the limits open gradually, to (3, 5), while the running statistics gather
    minibatches, and these are free of their beginning: the first step is batch normalization, and
    after some 500 to 800 the layer is what the paper describes.  For a training of known length
    ``limits=LinearLimits.paper(total_steps)`` is a little better still; `PAPER` is the paper's own
    schedule, which is plain batch normalization for 5,000 steps.

    The state dict has the keys of `nn.BatchNorm1d` and loads both ways (`BySamples` and learned
    mixing have one more); a loaded ``num_batches_tracked`` is the step of the schedule.  As with
    every normalization by the minibatch, a single row of two dimensions lies at its own mean: its
    output is right, within the limits, and its input gradient zero.

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
        If False there are no running statistics, and the layer is plain batch normalization in
        training and evaluation alike.
    limits
        A schedule (`LinearLimits`, `PAPER`, or any callable of the step; a picklable one, if
        the layer is to be pickled), or a pair ``(r_max, d_max)`` that holds at every step.  None
        stands for ``LinearLimits.gradual(momentum)``.
    initial
        What the running statistics begin as: "unit", mean 0 and variance 1, as in torch;
        "first_batch", the moments of the first minibatch; or "debiased", which in addition weighs
        all minibatches as if the average had no beginning (Kingma & Ba 2015, arXiv:1412.6980,
        section 3).  Statistics that are loaded without a count of minibatches are kept: they
        are taken to have seen as many as the average remembers.
    moving
        Whether variances ("var", as in torch) or standard deviations ("std", as in the paper) are
        averaged.  The buffer holds a variance either way.
    mixing
        Share of the way from the minibatch's statistics to the running ones, within the limits: a
        number in [0, 1], a schedule such as `LinearMixing`, or "learned", one per channel.
    average_backward
        Number of latest minibatches over which the two means in the gradient of the normalization
        are averaged, as moving average batch normalization does (Yan et al. 2020,
        arXiv:2001.06838, with 16); None for those of the minibatch alone.  For minibatches of a
        few values, where they are noise.  Then there is no second derivative.
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
        check_shape(input, self.num_features, SHAPES_1D)


class BatchRenorm2d(_BatchRenorm):
    """Batch Renormalization of ``(N, C, H, W)``, in the place of `nn.BatchNorm2d`.

    All else is as in `BatchRenorm1d`.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        check_shape(input, self.num_features, SHAPES_2D)


class BatchRenorm3d(_BatchRenorm):
    """Batch Renormalization of ``(N, C, D, H, W)``, in the place of `nn.BatchNorm3d`.

    All else is as in `BatchRenorm1d`.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        check_shape(input, self.num_features, SHAPES_3D)


class _LazyBatchRenorm(_LazyNormBase, _BatchRenorm):
    """A layer that takes its number of channels from the first input."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        limits: Limits | None = None,
        initial: Initial = "debiased",
        moving: Moving = "var",
        mixing: Mixing = 1.0,
        average_backward: int | None = None,
        bias: bool = True,
    ) -> None:
        check_average(eps, momentum)
        super().__init__(eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if not bias:
            self.register_parameter("bias", None)
        # Again, now that there are parameters to become as large as.
        self.set_options(
            limits=limits,
            initial=initial,
            moving=moving,
            mixing=mixing,
            average_backward=average_backward,
        )

    def initialize_parameters(self, input: Tensor) -> None:
        """Give parameters and buffers the input's number of channels."""
        logit: Any = self.mixing_logit
        # Where a state dict gave the parameters their shape, torch leaves this at 0.
        self.num_features = input.shape[1]
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
