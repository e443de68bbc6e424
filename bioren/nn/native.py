"""Normalisation by given moments with the kernels of torch's own batch normalisation.

With r and d held fixed, Batch Renormalization is batch normalisation with other parameters::

    (z * r + d) * weight + bias  =  z * (weight * r) + (weight * d + bias)

so that kernels which torch has already do all the work that grows with the input: one reads the
moments, one normalises, and one makes the gradient.  They are opaque to a compiler and to function
transforms; `usable` says where they can serve.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bioren.nn.moments import ChannelMoments
from bioren.nn.tracing import is_traced

__all__ = ["native_moments", "native_normalize", "usable"]


def usable(input: Tensor) -> bool:
    """Return whether the kernels take this: a plain tensor on a CPU or an NVIDIA or AMD GPU."""
    return (
        (input.is_cpu or input.is_cuda)
        and type(input) in _PLAIN
        and not is_traced()
        and forward_ad._current_level < 0
    )


_PLAIN = (Tensor, torch.nn.Parameter)
_backward = torch.ops.aten.native_batch_norm_backward.default


def native_moments(input: Tensor) -> ChannelMoments:
    """Return the moments of each channel, without gradient; `input` must not be empty."""
    channels = input.shape[1]
    scratch = None
    if input.dtype in (torch.float16, torch.bfloat16):
        # The kernel's statistics have the precision of the running ones it is given.
        scratch = input.new_zeros(channels, dtype=torch.float32)
    mean, var = torch.batch_norm_update_stats(input.detach(), scratch, scratch, 0.0)
    return ChannelMoments(mean, var, input.numel() // channels)


def native_normalize(
    input: Tensor,
    moments: ChannelMoments,
    weight: Tensor | None,
    bias: Tensor | None,
    r: Tensor | None,
    d: Tensor | None,
    eps: float,
) -> Tensor:
    """Return ``(z * r + d) * weight + bias``, z being `input` normalised by its own `moments`.

    The gradient is that of batch normalisation: through the moments, but not through r and d.
    """
    if moments.var.requires_grad:  # the gradient below goes through them as it is
        moments = moments.detach()
    y: Tensor = _Normalize.apply(  # type: ignore[no-untyped-call]
        input, weight, bias, r, d, moments.mean, moments.var, eps
    )
    return y


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
    ) -> Tensor:
        scale, shift = affine(weight, bias, r, d)
        ctx.eps = eps
        ctx.save_for_backward(input, weight, r, d, mean, var, scale)
        y, _, _ = torch.native_batch_norm(input, scale, shift, mean, var, False, 0.0, eps)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, r, d, mean, var, scale = ctx.saved_tensors
        wants_input, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a second derivative has to find the way to the weight
            scale, _ = affine(weight, None, r, d)
        dx, dscale, dshift = _backward(
            dy,
            input,
            scale,
            None,
            None,
            mean,
            (var + ctx.eps).rsqrt(),
            True,
            ctx.eps,
            [wants_input, wants_weight, wants_bias or wants_weight],
        )
        if wants_weight:
            # The shift holds the weight, too: it is d * weight + bias.
            dweight = dscale if r is None else dscale * r
            dweight = dweight if d is None else torch.addcmul(dweight, dshift, d)
        return (
            dx if wants_input else None,
            dweight if wants_weight else None,
            dshift if wants_bias else None,
            *[None] * 5,
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
