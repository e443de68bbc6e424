"""The kernels of torch's own batch normalization, with r and d in weight and bias.

With r and d held fixed, Batch Renormalization is batch normalization with other parameters::

    (z * r + d) * weight + bias  =  z * (weight * r) + (weight * d + bias)

so that kernels which torch has already do all the work that grows with the input: one reads the
moments, one normalizes, and one makes the gradient.

The gradient of the input, with g that of the output, is that of fixed moments less what the
moments themselves have to do with the input::

    scale / std * (g - share * (sum(g) + z * sum(g * z)))

share being 1/N, or the weight of a value under a mask.  Where the two sums are not those of this
minibatch alone (`bioren.nn.averaging`), others take their place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bioren.nn._torch import is_readable, is_traced, native_kernels_serve
from bioren.nn.averaging import BackwardAverages
from bioren.nn.channel_moments import (
    ChannelMoments,
    ValueWeights,
    channel_moments,
    of_channels,
    weighted_moments,
)

__all__ = ["affine", "batch_norm", "moments_of", "normalize"]

SMALL = 2**15
"""Up to so many values it is quicker to let torch's compiled autograd read the moments once more
than to enter Python in the backward pass."""


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
    *,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    terms: tuple[Tensor, Tensor] | None = None,
    weights: ValueWeights | None = None,
    averages: BackwardAverages | None = None,
) -> Tensor:
    """Return ``(z * r + d) * weight + bias``, z being `input` normalized by its own moments.

    The gradient goes through the moments.

    Parameters
    ----------
    input, moments
        From `moments_of`.
    weight, bias
        Shape ``(C,)``, in the dtype of the statistics; None stands for ones and zeros.
    eps
        Added to the variance.
    terms
        r and d, of shape ``(C,)`` too; None stands for ones and zeros.
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
        return batch_norm(input, scale, shift, eps=eps)
    return _normalized_by(input, moments, scale=scale, shift=shift, eps=eps)


def batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    moving: tuple[Tensor | None, Tensor | None, float] = (None, None, 0.0),
) -> Tensor:
    """Normalize by the minibatch; torch's functional form would refuse a single row.

    `moving` are running mean and variance, to be updated in place, and their momentum.
    """
    mean, var, momentum = moving
    cudnn = torch.backends.cudnn.enabled
    return torch.batch_norm(input, weight, bias, mean, var, True, momentum, eps, cudnn)


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
    input: Tensor,
    moments: ChannelMoments,
    *,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> Tensor:
    """Return `input` normalized by `moments`, scaled and shifted; autograd follows each step."""
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
        return _by_fixed_moments(input, (mean, var), scale=scale, shift=shift, eps=eps)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, dy)
        saved = ctx.saved_tensors  # read once: under checkpointing a second look would fail
        _, weight, _, r, d, *_, share = saved
        plain = share is None and ctx.averages is None
        dx, dscale, dshift = (_whole_gradients if plain else _gradients_in_parts)(ctx, saved, dy)
        _, wants_weight, wants_bias, wants_r, wants_d, *_ = ctx.needs_input_grad
        dweight = dr = dd = None
        if wants_weight:
            # The shift holds the weight, too: it is d * weight + bias.
            dweight = dscale if r is None else torch.addcmul(dscale * r, dshift, d)
        if wants_r:
            dr = dscale if weight is None else dscale * weight
        if wants_d:
            dd = dshift if weight is None else dshift * weight
        return dx, dweight, dshift if wants_bias else None, dr, dd, *[None] * 5


def _whole_gradients(ctx: Any, saved: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, scale and shift that torch's own kernel makes."""
    input, _, _, _, _, mean, var, scale, _ = saved
    wants_input, *wants_others = ctx.needs_input_grad[:5]
    wanted = [wants_input, any(wants_others), any(wants_others)]
    invstd = (var + ctx.eps).rsqrt()
    dx, dscale, dshift = _backward(
        dy, input, scale, None, None, mean, invstd, True, ctx.eps, wanted
    )
    return dx, dscale, dshift


def _gradients_in_parts(ctx: Any, saved: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same, the input's as that of fixed moments less what goes through the moments."""
    input, weight, _, r, d, mean, var, scale, share = saved
    wants_input = ctx.needs_input_grad[0]
    # Two gradients are subtracted, which half precision would not survive.
    values, g = input.to(mean.dtype), dy.to(mean.dtype)
    ones = mean.new_ones(len(mean)) if scale is None else scale
    invstd = (var + ctx.eps).rsqrt()
    # With moments that are none of the kernel's business it makes that of fixed ones.
    dx, dscale, dshift = _backward(
        g, values, ones, mean, var, mean, invstd, False, ctx.eps, [wants_input, True, True]
    )
    if not wants_input:
        return dx, dscale, dshift
    if ctx.averages is not None:
        number = input.numel() // len(mean)
        slope, level = ctx.averages.replaced((dscale, dshift), number, weight=weight, r=r, d=d)
    elif scale is not None:
        slope, level = dscale * scale, dshift * scale
    else:
        slope, level = dscale, dshift
    through = _by_fixed_moments(
        values, (mean, var), scale=slope * invstd, shift=level * invstd, eps=ctx.eps
    )
    if share is None:
        dx.sub_(through)
    else:
        # What does not count may be so large that it is infinite now: of that, no share at all
        # would be NaN.
        most = torch.finfo(through.dtype).max
        dx.addcmul_(through.clamp_(-most, most), share, value=-1)
    return dx.to(input.dtype), dscale, dshift


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
    y = _normalized_by(input, moments, scale=scale, shift=shift, eps=ctx.eps)
    found = torch.autograd.grad(y, list(leaves.values()), dy, create_graph=True)
    gradients = dict(zip(leaves, found, strict=True))
    return *(gradients.get(at) for at in range(5)), *[None] * 5


def _by_fixed_moments(
    input: Tensor,
    moments: tuple[Tensor, Tensor],
    *,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> Tensor:
    """Return `input` normalized by mean and variance, scaled and shifted, in one kernel."""
    mean, var = moments
    y, _, _ = torch.native_batch_norm(input, scale, shift, mean, var, False, 0.0, eps)
    return y
