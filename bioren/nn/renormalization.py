"""Values normalised by given moments, and one training step of renormalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bioren.bridge import kept_terms
from bioren.nn.averaging import BackwardAverages, normalize_with_averages
from bioren.nn.moments import ChannelMoments, channel_moments, of_channels, statistics_dtype
from bioren.nn.native import affine, native_moments, native_normalize, usable

if TYPE_CHECKING:
    from bioren.nn.tracking import Tracker

__all__ = ["mixed_terms", "moments_of", "normalize", "renormalize", "scaled"]


def renormalize(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    tracker: Tracker | None,
    *,
    mask: Tensor | None = None,
    mixing: float | Tensor = 1.0,
    averages: BackwardAverages | None = None,
) -> Tensor:
    """Normalise by the minibatch, correct towards the running statistics and update these.

    Parameters
    ----------
    input
        Shape ``(N, C)`` or ``(N, C, *positions)``.
    weight, bias
        Shape ``(C,)``, in the dtype of the statistics; None stands for ones and zeros.
    eps
        Added to every variance.
    tracker
        Turns the minibatch's moments into (r, d); None for plain batch normalisation.
    mask
        As in `channel_moments`.
    mixing
        Share of (r, d) that is applied, a number or a tensor that broadcasts to ``(C,)``.
    averages
        What the means in the gradient are averaged with; not with a mask.
    """
    unusual = mask is not None or averages is not None or isinstance(mixing, Tensor)
    if input.numel() == 0 or (tracker is None and not unusual):
        return _batch_norm(input, weight, bias, eps)  # there is nothing to learn from
    native = mask is None and usable(input)
    if native and not unusual and tracker is not None and _is_batch_norm(input, tracker):
        mean, var = tracker.running_mean.clone(), tracker.running_var.clone()
        y = _batch_norm(input, weight, bias, eps, mean, var, float(tracker.momentum))
        tracker.assign(mean, var)
        return y
    moments = native_moments(input) if native else moments_of(input, mask)
    r, d = (None, None) if tracker is None else mixed_terms(tracker, moments, mixing)
    if averages is not None:
        y = normalize_with_averages(input, moments, r, d, eps, averages)
        return scaled(y, weight, bias)
    if native and not unusual:
        return native_normalize(input, moments, weight, bias, r, d, eps)
    return normalize(input, moments, weight, bias, r, d, eps, mask=mask)


def mixed_terms(
    tracker: Tracker, moments: ChannelMoments, mixing: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Return the share `mixing` of the limited (r, d) of a minibatch, and let it in."""
    r, d = tracker.meet(moments)
    if isinstance(mixing, Tensor) or mixing != 1:
        return kept_terms(r, d, strength=1 - mixing)
    return r, d


def _is_batch_norm(input: Tensor, tracker: Tracker) -> bool:
    """Return whether torch's own training step, statistics and all, does what is asked for."""
    return (
        tracker.keeps_nothing
        and input.numel() > input.shape[1]  # it would take a single value's variance for NaN
        and tracker.running_var.dtype == statistics_dtype(input)
    )


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.0,
) -> Tensor:
    """Normalise by the minibatch; torch's functional form would refuse a single row."""
    cudnn = torch.backends.cudnn.enabled
    return torch.batch_norm(
        input, weight, bias, running_mean, running_var, True, momentum, eps, cudnn
    )


def moments_of(input: Tensor, mask: Tensor | None = None) -> ChannelMoments:
    """Return the moments that `normalize` takes, by the fastest way there is.

    They have a gradient of their own only where there is a mask; `normalize` knows that of the
    others.
    """
    if mask is not None:
        return channel_moments(input, mask)
    if input.numel() > 0 and usable(input):
        return native_moments(input)
    with torch.no_grad():
        return channel_moments(input)


def normalize(
    input: Tensor,
    moments: ChannelMoments,
    weight: Tensor | None,
    bias: Tensor | None,
    r: Tensor | None,
    d: Tensor | None,
    eps: float,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Return ``(z * r + d) * weight + bias``, z being `input` normalised by its own moments.

    Parameters
    ----------
    input
        Shape ``(N, C)`` or ``(N, C, *positions)``.
    moments
        Of `input`, from `moments_of`.
    weight, bias, r, d
        Shape ``(C,)``, in the dtype of the statistics; r and d both or neither.
    eps
        Added to the variance.
    mask
        The one that `moments` were taken with.
    """
    constant = r is None or d is None or not (r.requires_grad or d.requires_grad)
    if mask is None and constant and input.numel() > 0 and usable(input):
        return native_normalize(input, moments, weight, bias, r, d, eps)
    scale, shift = affine(weight, bias, r, d)
    if mask is None:
        return _batch_norm(input, scale, shift, eps)
    # What does not count may be NaN, and 0 * NaN would reach every gradient.
    input = torch.where((mask > 0) | input.isfinite(), input, 0)
    z = (input - of_channels(moments.mean, input)) / of_channels((moments.var + eps).sqrt(), input)
    return scaled(z, scale, shift).to(input.dtype)


def scaled(input: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Return ``input * scale + shift``, both one per channel; None stands for ones and zeros."""
    dtype = input.dtype
    if scale is not None:
        input = input * of_channels(scale, input)
    if shift is not None:
        input = input + of_channels(shift, input)
    return input.to(dtype)
