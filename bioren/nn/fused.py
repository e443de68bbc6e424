"""The arithmetic per channel as one kernel, for layers so small that a GPU waits for launches.

The two dozen operations of `bioren.nn.tracking` are one launch each; with few channels the GPU is
done with one before the next arrives.  Here they are a single Triton kernel, that of the usual
case: average of variances, statistics of single precision.  Formula and results are the same.

This module needs Triton, which comes with torch for GPUs; it is imported where it is used.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bioren.nn.schedules import Bound

__all__ = ["fused_step"]


def fused_step(
    mean_b: Tensor,
    var_b: Tensor,
    number: int,
    *,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float | Tensor,
    eps: float,
    r_max: Bound,
    d_max: Bound,
    first: bool | Tensor = False,
    counter: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the limited (r, d) and let the minibatch into the running statistics, in place.

    Parameters
    ----------
    mean_b, var_b
        Moments of the minibatch, shape ``(channels,)``, float32, contiguous.
    number
        Values per channel.
    running_mean, running_var
        Shape ``(channels,)``, float32, contiguous.  Left alone if one of them would not be finite.
    momentum, r_max, d_max
        Numbers, or 0-d tensors on the same device, which nobody waits for.
    eps
        Added to every variance.
    first
        Whether this minibatch is what the running statistics are at first, likewise.
    counter
        Of the minibatches that were let in, 0-d int64, counted on; or None.
    """
    channels = len(mean_b)
    r, d = torch.empty_like(mean_b), torch.empty_like(mean_b)
    scalars = [_float32(value) for value in (r_max, d_max, momentum)]
    # Triton launches on the current device.
    with torch.cuda.device_of(mean_b):  # type: ignore[no-untyped-call]
        _kernel[(1,)](
            mean_b,
            var_b,
            running_mean,
            running_var,
            r,
            d,
            first if isinstance(first, Tensor) else int(first),
            counter,
            *scalars,
            eps,
            number / (number - 1) if number > 1 else 0.0,
            channels,
            BLOCK=triton.next_power_of_2(channels),
            LOADED=tuple(isinstance(value, Tensor) for value in (*scalars, first)),
            num_warps=4 if channels <= 1024 else 8,
        )
    return r, d


def _float32(value: float | Tensor) -> float | Tensor:
    return value.to(torch.float32) if isinstance(value, Tensor) else float(value)


@triton.jit  # type: ignore[untyped-decorator]
def _scalar(value, loaded: tl.constexpr):  # type: ignore[no-untyped-def]
    if loaded:
        return tl.load(value)
    else:
        return value


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    mean_b_at,
    var_b_at,
    mean_at,
    var_at,
    r_at,
    d_at,
    first_given,
    counter_at,
    r_max_given,
    d_max_given,
    momentum_given,
    eps,
    bessel,
    channels,
    BLOCK: tl.constexpr,
    LOADED: tl.constexpr,
):
    at = tl.arange(0, BLOCK)
    inside = at < channels
    mean_b = tl.load(mean_b_at + at, mask=inside, other=0.0)
    var_b = tl.load(var_b_at + at, mask=inside, other=1.0)
    mean = tl.load(mean_at + at, mask=inside, other=0.0)
    var = tl.load(var_at + at, mask=inside, other=1.0)
    r_max = _scalar(r_max_given, LOADED[0])
    d_max = _scalar(d_max_given, LOADED[1])
    momentum = _scalar(momentum_given, LOADED[2])
    first = _scalar(first_given, LOADED[3])
    several = bessel > 0  # a single value has no variance
    mean = tl.where(first != 0, mean_b, mean)
    var = tl.where((first != 0) & several, var_b * bessel, var)

    # `bioren.bridge.renorm_terms` once more: Triton compiles only functions of its own files.
    std = tl.sqrt(var + eps)
    r = tl.sqrt(var_b + eps) / std
    d = (mean_b - mean) / std
    nan: tl.constexpr = tl.PropagateNan.ALL
    r = tl.minimum(tl.maximum(r, 1 / r_max, propagate_nan=nan), r_max, propagate_nan=nan)
    d = tl.minimum(tl.maximum(d, -d_max, propagate_nan=nan), d_max, propagate_nan=nan)
    tl.store(r_at + at, r, mask=inside)
    tl.store(d_at + at, d, mask=inside)

    new_mean = mean + momentum * (mean_b - mean)
    new_var = var + momentum * (var_b * bessel - var)
    new_var = tl.where(several, new_var, var)
    total = tl.sum(tl.where(inside, new_mean * 0 + new_var * 0, 0.0))  # NaN unless all are finite
    finite = tl.full([BLOCK], 0.0, tl.float32) + tl.abs(total) < float("inf")
    tl.store(mean_at + at, new_mean, mask=inside & finite)
    tl.store(var_at + at, new_var, mask=inside & finite)
    if counter_at is not None:
        tl.store(counter_at, tl.load(counter_at) + (tl.abs(total) < float("inf")).to(tl.int64))
