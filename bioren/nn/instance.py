"""Instance normalization bridged to the statistics of the minibatch or of the population."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from bioren.nn._torch import leaf_of
from bioren.nn.base import SHAPES_2D, SHAPES_3D, Initial, RenormBase, check_shape
from bioren.nn.channel_moments import ChannelMoments, statistics_dtype
from bioren.nn.functional import in_dtype, instance_renorm
from bioren.nn.renormalization import renormalize_instances
from bioren.nn.schedules import Mixing, check_choice
from bioren.nn.tracking import Moving, Tracker

__all__ = ["InstanceRenorm1d", "InstanceRenorm2d", "InstanceRenorm3d"]


class _InstanceRenorm(RenormBase):
    """Instance Renorm for any shape; subclasses check the number of dimensions."""

    target: Literal["population", "batch"]

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
        mixing: Mixing = 0.5,
        target: Literal["population", "batch"] = "population",
        initial: Initial = "debiased",
        moving: Moving = "var",
        bias: bool = True,
    ) -> None:
        check_choice("target", target, ("population", "batch"))
        if target == "population" and not track_running_stats:
            msg = 'target="population" needs running statistics; use target="batch" without them.'
            raise ValueError(msg)
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            initial=initial,
            moving=moving,
            mixing=mixing,
            bias=bias,
        )
        self.target = target

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` normalized, of its shape and dtype.

        Raises
        ------
        ValueError
            `input` has another shape.
        TypeError
            `input` is not floating point.
        """
        node = leaf_of(self, input)
        if node is not None:
            return node
        self._check_input(input)
        mixing, learned = self._mixing_now()  # at the step before this one is counted
        share = mixing if learned is None else learned
        if not self._tracks:
            mean, var = (None, None) if self.training else (self.running_mean, self.running_var)
            return instance_renorm(input, mean, var, self.weight, self.bias, self.eps, mixing=share)
        tracker = self._tracker(1.0, 0.0, 1.0, counts=input.numel() > 0)
        dtype = statistics_dtype(input)
        return renormalize_instances(
            input,
            in_dtype(self.weight, dtype),
            in_dtype(self.bias, dtype),
            eps=self.eps,
            target=partial(self._met, tracker),
            mixing=share,
            gradient=self.target == "batch",
        )

    def _met(self, tracker: Tracker, batch: ChannelMoments) -> tuple[Tensor, Tensor]:
        """Let the minibatch in, and return the moments to bridge to."""
        population = tracker.population(batch)
        return population if self.target == "population" else (batch.mean, batch.var)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"{super().extra_repr()}, target={self.target!r}"


class InstanceRenorm1d(_InstanceRenorm):
    """Instance normalization of ``(N, C, L)``, bridged to the minibatch or the population.

    Each channel of each instance is normalized by its own mean and deviation over the positions.
    The bridge leads from there to the statistics that all instances share, and a share m of it is
    kept: ``r**m * z + m * d``.  With a mixing of 0 this is instance normalization, which forgets
    how an instance differs from the others (its contrast, its style), with 1 it is batch
    normalization, which keeps all of that; between them lies a part of it.

    The output for an instance never depends on the others if the target is the population, in
    evaluation whatever the target.

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
        If False the target is the minibatch, in evaluation too.
    mixing
        Share of the bridge that is kept: a number in [0, 1], a schedule such as `LinearMixing`,
        or "learned", one per channel.
    target
        In training: "population", the running statistics, with r and d free of gradient as in
        Batch Renormalization; or "batch", the minibatch, with their gradient, so that the two
        ends are torch's own layers.  In evaluation always the running statistics.
    initial, moving, bias
        As in `BatchRenorm1d`; the running statistics begin with the first minibatch.
    device, dtype
        Of parameters and buffers.

    Raises
    ------
    ValueError
        An argument is out of range; on forward, `input` has another shape.

    References
    ----------
    Nam & Kim (2018), *Batch-instance normalization*, arXiv:1805.07925, mixes the two normalized
    values; here the bridge between them is followed part of the way.

    Examples
    --------
    >>> import torch
    >>> layer = InstanceRenorm1d(3, mixing=0.3)
    >>> layer(torch.randn(4, 3, 16)).shape
    torch.Size([4, 3, 16])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        check_shape(input, self.num_features, {3: ", L"})


class InstanceRenorm2d(_InstanceRenorm):
    """Instance normalization of ``(N, C, H, W)``, bridged to the minibatch or the population.

    All else is as in `InstanceRenorm1d`.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        check_shape(input, self.num_features, SHAPES_2D)


class InstanceRenorm3d(_InstanceRenorm):
    """Instance normalization of ``(N, C, D, H, W)``, bridged to the minibatch or the population.

    All else is as in `InstanceRenorm1d`.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        check_shape(input, self.num_features, SHAPES_3D)
