"""One training step of renormalisation, with the kernels of torch's own batch normalisation.

With r and d held fixed, Batch Renormalization is batch normalisation with other parameters::

    (z * r + d) * weight + bias  =  z * (weight * r) + (weight * d + bias)

so that kernels which torch has already do all the work that grows with the input: one reads the
moments, one normalises, and one makes the gradient.

The gradient of the input, with g that of the output, is that of fixed moments less what the
moments themselves have to do with the input::

    scale / std * (g - share * (sum(g) + z * sum(g * z)))

share being 1/N, or the weight of a value under a mask.  Where the two sums are not those of this
minibatch alone (`bioren.nn.averaging`), others take their place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bioren.bridge import mixed_terms, renorm_terms
from bioren.nn._torch import is_readable, is_traced, native_kernels_serve
from bioren.nn.averaging import BackwardAverages
from bioren.nn.moments import (
    ChannelMoments,
    ValueWeights,
    channel_moments,
    merged_moments,
    of_channels,
    statistics_dtype,
    weighted_moments,
)

if TYPE_CHECKING:
    from bioren.nn.tracking import Tracker

__all__ = ["applied_terms", "moments_of", "normalize", "renormalize", "renormalize_instances"]

Target = Callable[[ChannelMoments], tuple[Tensor, Tensor]]
"""Turns the minibatch's moments into the mean and variance to bridge to, each ``(C,)``."""

SMALL = 2**15
"""Up to so many values it is quicker to let torch's compiled autograd read the moments once more
than to enter Python in the backward pass."""


def renormalize(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    tracker: Tracker | None,
    *,
    weights: ValueWeights | None = None,
    learned: Tensor | None = None,
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
    weights
        How much each value counts in the moments.
    learned
        Share of (r, d) that is applied, with its gradient; shape ``(C,)``.
    averages
        What the means in the gradient are averaged with.
    """
    if input.numel() == 0:  # there is nothing to learn from, but other ranks wait for gradients
        y = batch_norm(input, weight, bias, eps)
        return y if learned is None else y + 0 * of_channels(learned, input).to(y.dtype)
    plain = weights is None and averages is None
    if plain and tracker is None:
        return batch_norm(input, weight, bias, eps)
    if plain and tracker is not None and learned is None and _is_batch_norm(input, tracker):
        mean, var = tracker.running_mean.clone(), tracker.running_var.clone()
        y = batch_norm(input, weight, bias, eps, mean, var, float(tracker.momentum))
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
    return normalize(input, moments, weight, bias, terms, eps, weights=weights, averages=averages)


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
    eps: float,
    target: Target,
    mixing: float | Tensor,
    *,
    gradient: bool,
) -> Tensor:
    """Return ``(r**m * z + m * d) * weight + bias``, z normalised by instance and channel.

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
        return renormalize(input, weight, bias, eps, None, learned=learned)
    # Every instance's channel is a channel of one long row, so that torch's kernels serve.
    row = input.reshape(1, n * channels, *input.shape[2:])
    own = channel_moments(row) if gradient else moments_of(row)[1]
    mean_i, var_i = own.mean.view(n, channels), own.var.view(n, channels)
    batch = merged_moments(ChannelMoments(mean_i, var_i, own.number))
    mean, var = target(batch)
    r, d = renorm_terms(mean_i, (var_i + eps).sqrt(), mean, (var + eps).sqrt())
    scale, shift = affine(weight, bias, *mixed_terms(r, d, mixing))
    return normalize(row, own.detach(), _flat(scale), _flat(shift), None, eps).view_as(input)


def _flat(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.reshape(-1)


def moments_of(input: Tensor, weights: ValueWeights | None = None) -> tuple[Tensor, ChannelMoments]:
    """Return what `normalize` takes: `input` and its moments, by the fastest way there is.

    The moments have a gradient of their own only where compilers or function transforms need to
    see it; `normalize` knows that of the others.  Where there is a mask, values that do not count
    and are not finite are 0 in the returned input.

    Parameters
    ----------
    input
        Shape ``(N, C)`` or ``(N, C, *positions)``.
    weights
        As in `channel_moments`.
    """
    native = input.numel() > 0 and native_kernels_serve(input)
    if weights is None:
        if native:
            return input, _native_moments(input)
        with torch.no_grad():
            return input, channel_moments(input)
    if native and is_readable(input.detach()):
        moments = weighted_moments(input, weights)
        if bool((moments.mean + moments.var).isfinite().all()):
            return input, moments
    # What does not count may be NaN, and 0 * NaN would reach every sum.
    counts = weights.share > 0
    input = torch.where(counts | input.isfinite(), input, 0)
    if native:
        return input, weighted_moments(torch.where(counts, input, 0), weights)
    return input, channel_moments(input, weights)


def normalize(
    input: Tensor,
    moments: ChannelMoments,
    weight: Tensor | None,
    bias: Tensor | None,
    terms: tuple[Tensor, Tensor] | None,
    eps: float,
    *,
    weights: ValueWeights | None = None,
    averages: BackwardAverages | None = None,
) -> Tensor:
    """Return ``(z * r + d) * weight + bias``, z being `input` normalised by its own moments.

    The gradient goes through the moments.

    Parameters
    ----------
    input, moments
        From `moments_of`.
    weight, bias
        Shape ``(C,)``, in the dtype of the statistics; None stands for ones and zeros.
    terms
        r and d, likewise; None stands for ones and zeros.
    eps
        Added to the variance.
    weights
        Those that `moments` were taken with.
    averages
        What the means in the gradient are averaged with, updated in the backward pass.
    """
    r, d = (None, None) if terms is None else terms
    if averages is not None and is_traced():
        raise RuntimeError(
            "average_backward works in eager mode alone: its memory is written in the backward "
            "pass, which compilers and function transforms do not see."
        )
    quicker = input.numel() > 0 and (weights is not None or input.numel() > SMALL)
    if averages is not None or (quicker and native_kernels_serve(input)):
        share = None if weights is None else weights.share
        y: Tensor = _Normalize.apply(  # type: ignore[no-untyped-call]
            input, weight, bias, r, d, moments.mean, moments.var, eps, share, averages
        )
        return y
    scale, shift = affine(weight, bias, r, d)
    if weights is None:
        return batch_norm(input, scale, shift, eps)
    return _normalized_by(input, moments, scale, shift, eps)


def batch_norm(
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


def affine(
    weight: Tensor | None, bias: Tensor | None, r: Tensor | None, d: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return scale and shift such that ``z * scale + shift = (z * r + d) * weight + bias``."""
    if r is None or d is None:
        return weight, bias
    if weight is None:
        return r, d if bias is None else d + bias
    return r * weight, d * weight if bias is None else torch.addcmul(bias, d, weight)


def scaled(input: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Return ``input * scale + shift``, both one per channel; None stands for ones and zeros."""
    dtype = input.dtype
    if scale is not None:
        input = input * of_channels(scale, input)
    if shift is not None:
        input = input + of_channels(shift, input)
    return input.to(dtype)


def _normalized_by(
    input: Tensor, moments: ChannelMoments, scale: Tensor | None, shift: Tensor | None, eps: float
) -> Tensor:
    """Return `input` normalised by `moments`, scaled and shifted; autograd follows each step."""
    std = (moments.var + eps).sqrt()
    z = (input - of_channels(moments.mean, input)) / of_channels(std, input)
    return scaled(z, scale, shift).to(input.dtype)


def _native_moments(input: Tensor) -> ChannelMoments:
    channels = input.shape[1]
    scratch = None
    if input.dtype in (torch.float16, torch.bfloat16):
        # The kernel's statistics have the precision of the running ones it is given.
        scratch = input.new_zeros(channels, dtype=torch.float32)
    mean, var = torch.batch_norm_update_stats(input.detach(), scratch, scratch, 0.0)
    return ChannelMoments(mean, var, input.numel() // channels)


_backward = torch.ops.aten.native_batch_norm_backward.default


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        r: Tensor | None,
        d: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        share: Tensor | None,
        averages: BackwardAverages | None,
    ) -> Tensor:
        scale, shift = affine(weight, bias, r, d)
        ctx.eps, ctx.averages = eps, averages
        ctx.save_for_backward(input, weight, bias, r, d, mean, var, scale, share)
        return _fixed(input, scale, shift, mean, var, eps)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, dy)
        input, weight, _, r, d, mean, var, scale, share = ctx.saved_tensors
        wants_input, wants_weight, wants_bias, wants_r, wants_d, *_ = ctx.needs_input_grad
        invstd = (var + ctx.eps).rsqrt()
        plain = share is None and ctx.averages is None
        if plain:
            wants_sums = wants_weight or wants_bias or wants_r or wants_d
            dx, dscale, dshift = _backward(
                dy,
                input,
                scale,
                None,
                None,
                mean,
                invstd,
                True,
                ctx.eps,
                [wants_input, wants_sums, wants_sums],
            )
        else:
            # Two gradients are subtracted, which half precision would not survive.
            values, g = input.to(mean.dtype), dy.to(mean.dtype)
            # With moments that are none of the kernel's business it makes that of fixed ones.
            dx, dscale, dshift = _backward(
                g,
                values,
                mean.new_ones(len(mean)) if scale is None else scale,
                mean,
                var,
                mean,
                invstd,
                False,
                ctx.eps,
                [wants_input, True, True],
            )
            if wants_input:
                if ctx.averages is not None:
                    number = input.numel() // len(mean)
                    slope, level = ctx.averages.replaced(dscale, dshift, weight, r, d, number)
                elif scale is not None:
                    slope, level = dscale * scale, dshift * scale
                else:
                    slope, level = dscale, dshift
                through = _fixed(values, slope * invstd, level * invstd, mean, var, ctx.eps)
                if share is None:
                    dx.sub_(through)
                else:
                    # What does not count may be so large that it is infinite now: of that, no
                    # share at all would be NaN.
                    most = torch.finfo(through.dtype).max
                    dx.addcmul_(through.clamp_(-most, most), share, value=-1)
                dx = dx.to(input.dtype)
        dweight = dr = dd = None
        if wants_weight:
            # The shift holds the weight, too: it is d * weight + bias.
            dweight = dscale if r is None else torch.addcmul(dscale * r, dshift, d)
        if wants_r:
            dr = dscale if weight is None else dscale * weight
        if wants_d:
            dd = dshift if weight is None else dshift * weight
        return dx, dweight, dshift if wants_bias else None, dr, dd, *[None] * 5


def _differentiable_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of `_Normalize` with a graph of their own, for a second derivative."""
    if ctx.averages is not None:
        raise RuntimeError("average_backward has no second derivative; leave it out.")
    input, weight, bias, r, d, _, _, _, share = ctx.saved_tensors
    wanted = [
        (at, tensor)
        for at, tensor in enumerate((input, weight, bias, r, d))
        if ctx.needs_input_grad[at]
    ]
    # Views, as the graph is to begin here, whatever the tensors themselves come from.
    leaves = {at: tensor.view_as(tensor) for at, tensor in wanted}
    input, weight, bias, r, d = (
        leaves.get(at, tensor) for at, tensor in enumerate((input, weight, bias, r, d))
    )
    scale, shift = affine(weight, bias, r, d)
    weights = None if share is None else ValueWeights.of(share, share.dtype)
    moments = channel_moments(input, weights)
    y = _normalized_by(input, moments, scale, shift, ctx.eps)
    found = torch.autograd.grad(y, list(leaves.values()), dy, create_graph=True)
    gradients = dict(zip(leaves, found, strict=True))
    return *(gradients.get(at) for at in range(5)), *[None] * 5


def _fixed(
    input: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
) -> Tensor:
    """Return `input` normalised by these moments, scaled and shifted, in one kernel."""
    y, _, _ = torch.native_batch_norm(input, scale, shift, mean, var, False, 0.0, eps)
    return y
