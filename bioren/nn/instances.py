"""Each instance and channel normalised by itself, and bridged to what all instances share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bioren.bridge import kept_terms, renorm_terms
from bioren.nn.moments import ChannelMoments, channel_moments, merged_moments
from bioren.nn.native import affine
from bioren.nn.renormalization import moments_of, normalize, scaled

__all__ = ["renormalize_instances"]

Target = Callable[[ChannelMoments], tuple[Tensor, Tensor]]
"""Turns the minibatch's moments into the mean and variance to bridge to, each ``(C,)``."""


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
    """Return ``(r_kept * z + d_kept) * weight + bias``, z normalised by instance and channel.

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
        Share of the bridge that is kept, a number or a tensor that broadcasts to ``(C,)``.
    gradient
        Whether r and d have a gradient; else they are constants, as in Batch Renormalization.
    """
    n, channels = input.shape[:2]
    if input.numel() == 0:
        return scaled(input, weight, bias).to(input.dtype)
    # Every instance's channel is a channel of one long row, so that torch's kernels serve.
    row = input.reshape(1, n * channels, *input.shape[2:])
    own = channel_moments(row) if gradient else moments_of(row)
    mean_i, var_i = own.mean.view(n, channels), own.var.view(n, channels)
    batch = merged_moments(ChannelMoments(mean_i, var_i, own.number))
    mean, var = target(batch)
    r, d = renorm_terms(mean_i, (var_i + eps).sqrt(), mean, (var + eps).sqrt())
    r, d = kept_terms(r, d, strength=1 - mixing)
    scale, shift = affine(weight, bias, r, d)
    if scale is not None and shift is not None:
        scale, shift = scale.reshape(-1), shift.reshape(-1)
    return normalize(row, own, scale, shift, None, None, eps).view_as(input)
