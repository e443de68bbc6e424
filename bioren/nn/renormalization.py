"""One training step of renormalization, by the quickest way that does what is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bioren.bridge import mixed_terms, renorm_terms
from bioren.nn._torch import native_kernels_serve
from bioren.nn.averaging import BackwardAverages
from bioren.nn.channel_moments import (
    ChannelMoments,
    ValueWeights,
    channel_moments,
    merged_moments,
    of_channels,
    statistics_dtype,
)
from bioren.nn.kernels import affine, batch_norm, moments_of, normalize

if TYPE_CHECKING:
    from bioren.nn.tracking import Tracker

__all__ = ["applied_terms", "renormalize", "renormalize_instances"]

Target = Callable[[ChannelMoments], tuple[Tensor, Tensor]]
"""Turns the minibatch's moments into the mean and variance to bridge to, each ``(C,)``."""


def renormalize(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    tracker: Tracker | None,
    weights: ValueWeights | None = None,
    learned: Tensor | None = None,
    averages: BackwardAverages | None = None,
) -> Tensor:
    """Normalize by the minibatch, correct towards the running statistics and update these.

    Parameters
    ----------
    input
        Shape ``(N, C)`` or ``(N, C, *positions)``.
    weight, bias
        Shape ``(C,)``, in the dtype of the statistics; None stands for ones and zeros.
    eps
        Added to every variance.
    tracker
        Turns the minibatch's moments into (r, d); None for plain batch normalization.
    weights
        How much each value counts in the moments.
    learned
        Share of (r, d) that is applied, with its gradient; shape ``(C,)``.
    averages
        What the means in the gradient are averaged with.
    """
    if input.numel() == 0:  # there is nothing to learn from, but other ranks wait for gradients
        y = batch_norm(input, weight, bias, eps=eps)
        return y if learned is None else y + 0 * of_channels(learned, input).to(y.dtype)
    plain = weights is None and averages is None
    if plain and tracker is None:
        return batch_norm(input, weight, bias, eps=eps)
    if plain and tracker is not None and learned is None and _is_batch_norm(input, tracker):
        mean, var = tracker.running_mean.clone(), tracker.running_var.clone()
        moving = mean, var, float(tracker.momentum)
        y = batch_norm(input, weight, bias, eps=eps, moving=moving)
        tracker.assign(mean, var)
        return y
    met = None
    if tracker is not None and weights is None and native_kernels_serve(input):
        met = tracker.meet_values(input)
    terms: tuple[Tensor, Tensor] | None
    if met is not None:
        moments, (r, d) = met
        terms = (r, d) if learned is None else mixed_terms(r, d, learned)
    else:
        input, moments = moments_of(input, weights)
        if weights is not None and tracker is not None:
            moments = _running_where_empty(moments, tracker)
        terms = None if tracker is None else applied_terms(tracker, moments, learned)
    return normalize(
        input,
        moments,
        weight=weight,
        bias=bias,
        terms=terms,
        eps=eps,
        weights=weights,
        averages=averages,
    )


def applied_terms(
    tracker: Tracker, moments: ChannelMoments, learned: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return what is applied of the (r, d) of a minibatch, and let it in."""
    r, d = tracker.meet(moments)
    return (r, d) if learned is None else mixed_terms(r, d, learned)


def _running_where_empty(moments: ChannelMoments, tracker: Tracker) -> ChannelMoments:
    """Return the running statistics in the place of moments of which no value counts."""
    number = moments.number
    if not isinstance(number, Tensor) and number > 0:
        return moments
    dtype = moments.mean.dtype
    mean, var = tracker.running_mean.to(dtype), tracker.running_var.to(dtype)
    if isinstance(number, Tensor):
        mean = torch.where(number > 0, moments.mean, mean)
        var = torch.where(number > 0, moments.var, var)
    return moments._replace(mean=mean + 0, var=var + 0)  # copies: these move on


def _is_batch_norm(input: Tensor, tracker: Tracker) -> bool:
    """Return whether torch's own training step does what is asked for."""
    return (
        tracker.is_batch_norm
        and native_kernels_serve(input)
        and input.numel() > input.shape[1]  # it would take a single value's variance for NaN
        and tracker.running_var.dtype == statistics_dtype(input)
    )


def renormalize_instances(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    target: Target,
    mixing: float | Tensor,
    gradient: bool,
) -> Tensor:
    """Return ``(r**m * z + m * d) * weight + bias``, z normalized by instance and channel.

    Parameters
    ----------
    input
        Shape ``(N, C, *positions)``.
    weight, bias
        Shape ``(C,)``, in the dtype of the statistics; None stands for ones and zeros.
    eps
        Added to every variance.
    target
        The other end of the bridge.
    mixing
        Share m of the bridge that is applied, a number or a tensor that broadcasts to ``(C,)``.
    gradient
        Whether r and d have a gradient; else they are constants, as in Batch Renormalization.
    """
    n, channels = input.shape[:2]
    if input.numel() == 0:
        learned = mixing if isinstance(mixing, Tensor) else None
        return renormalize(input, weight, bias, eps=eps, tracker=None, learned=learned)
    # Every instance's channel is a channel of one long row, so that torch's kernels serve.
    row = input.reshape(1, n * channels, *input.shape[2:])
    own = channel_moments(row) if gradient else moments_of(row)[1]
    mean_i, var_i = own.mean.view(n, channels), own.var.view(n, channels)
    batch = merged_moments(ChannelMoments(mean_i, var_i, own.number))
    mean, var = target(batch)
    r, d = renorm_terms(mean_i, (var_i + eps).sqrt(), mean, (var + eps).sqrt())
    scale, shift = affine(weight, bias, *mixed_terms(r, d, mixing))
    y = normalize(row, own.detach(), weight=_flat(scale), bias=_flat(shift), eps=eps)
    return y.view_as(input)


def _flat(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.reshape(-1)
