"""Renormalization as pure functions of their arguments, running statistics updated in place.

All of them rest on the bridge of `bioren.bridge`, clipped and kept out of the gradient, and
have one convention for the spread throughout: ``std = sqrt(var + eps)``, as in
`torch.nn.functional.batch_norm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from bioren.bridge import clip_terms, renorm_terms
from bioren.nn._torch import saved_for_backward
from bioren.nn.channel_moments import ChannelMoments, ValueWeights, statistics_dtype
from bioren.nn.grouped import (
    Normalizer,
    SampleStatistics,
    first_seen,
    grouped_moments,
    population_normalizer,
    spread,
    updated,
)
from bioren.nn.recomputation import Recollection
from bioren.nn.renormalization import renormalize, renormalize_instances
from bioren.nn.schedules import ConstantLimits, check_choice, check_share
from bioren.nn.tracking import Moving, Tracker

if TYPE_CHECKING:
    from torch import Tensor

    from bioren.nn.schedules import Bound

__all__ = ["SampleStatistics", "batch_renorm", "instance_renorm", "sample_renorm"]


def batch_renorm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float | Tensor = 0.01,
    eps: float = 1e-5,
    *,
    r_max: Bound = 3.0,
    d_max: Bound = 5.0,
    mask: Tensor | None = None,
    mixing: float | Tensor = 1.0,
    moving: Moving = "var",
) -> Tensor:
    """Apply Batch Renormalization to each channel.

    Training normalizes by the minibatch, then corrects towards the running statistics::

        y = ((x - mean_B) / std_B * r**m + m * d) * weight + bias
        r = clip(std_B / std, 1 / r_max, r_max)             without gradient
        d = clip((mean_B - mean) / std, -d_max, d_max)      without gradient

    and updates the running statistics afterwards.  Evaluation normalizes by the running
    statistics.  With limits (1, 0) training is `torch.nn.functional.batch_norm`.

    Of the options of `bioren.nn.BatchRenorm1d` two have a memory of their own and are the layer's
    alone: ``average_backward``, and ``initial`` (give the first minibatches a larger momentum).

    Parameters
    ----------
    input
        Shape ``(N, C)`` or ``(N, C, *positions)``, floating point.  One value per channel is
        enough, but has a gradient of zero in training, as it lies at its own mean.  Statistics
        of float16 and bfloat16 are computed in float32.
    running_mean, running_var
        Shape ``(C,)``; both or neither.  Without them training is plain batch normalization.
        Updated in place in training, the variance by the minibatch's unbiased one as in torch.
        A minibatch that is empty or holds a value that is not finite changes neither, a single
        value per channel, which has no variance, changes the mean alone.
    weight, bias
        Shape ``(C,)``; None stands for ones and zeros.
    training
        Whether to normalize by the minibatch and to learn from it.
    momentum
        Share of the minibatch in the new running statistics; a number or a 0-d tensor.
    eps
        Added to every variance.
    r_max, d_max
        Limits on r and d; numbers or 0-d tensors.
    mask
        Which values count in the statistics (bool), or how much (weights that are not negative,
        of which only the ratios matter), alike for all channels.  Shape ``(N,)`` for whole rows,
        or ``(N, *positions)``, also with a dimension of 1 for the channels; other dimensions may
        be 1 as well, and then count for all.  What does not count is normalized with the rest,
        takes no part in the gradient of the statistics, and may hold anything; if it is not
        finite it becomes 0 first.  None counts all.
    mixing
        Share m of the bridge that is applied, in [0, 1]: a number, or a tensor that broadcasts to
        ``(C,)`` and may have a gradient.
    moving
        Whether variances ("var") or standard deviations ("std") are averaged over minibatches.

    Returns
    -------
    torch.Tensor
        Of the shape and dtype of `input`.

    Raises
    ------
    ValueError
        `input` has fewer than two dimensions or another number of channels than the running
        statistics; one of these is missing, or both in evaluation; `mask` has another shape;
        `mixing` or `momentum` is a number outside [0, 1], or a limit out of range.

    References
    ----------
    Ioffe (2017), *Batch Renormalization*, arXiv:1702.03275, algorithm 1.
    """
    check_channels(input, running_mean, running_var, training=training)
    if not training:
        return evaluate(input, running_mean, running_var, weight=weight, bias=bias, eps=eps)
    check_share("mixing", mixing)
    check_share("momentum", momentum)
    check_choice("moving", moving, ("var", "std"))
    if not isinstance(r_max, torch.Tensor) and not isinstance(d_max, torch.Tensor):
        ConstantLimits(r_max, d_max)  # raises if out of range
    learned = mixing if isinstance(mixing, torch.Tensor) else None
    tracker = None
    if running_mean is not None and running_var is not None:
        share = mixing if learned is None else 1.0
        tracker = Tracker(
            running_mean,
            running_var,
            momentum=momentum,
            eps=eps,
            r_max=r_max,
            d_max=d_max,
            mixing=share,
            moving=moving,
        )
    dtype = statistics_dtype(input)
    return renormalize(
        input,
        in_dtype(weight, dtype),
        in_dtype(bias, dtype),
        eps=eps,
        tracker=tracker,
        weights=None if mask is None else value_weights(mask, input),
        learned=in_dtype(learned, dtype),
    )


def instance_renorm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    mixing: float | Tensor = 0.5,
) -> Tensor:
    """Normalize each instance and channel by itself, and bridge it to shared statistics.

    ``y = (r**m * z + m * d) * weight + bias``, where z is instance normalized, (r, d) lead to the
    shared statistics, and m is the mixing: 0 is `torch.nn.functional.instance_norm`, 1 is
    `torch.nn.functional.batch_norm`.

    Parameters
    ----------
    input
        Shape ``(N, C, *positions)``, floating point, with at least one dimension of positions.
    running_mean, running_var
        The shared statistics, shape ``(C,)``; r and d then have no gradient.  Without them the
        minibatch's take their place, with their gradient.  Never changed.
    weight, bias
        Shape ``(C,)``; None stands for ones and zeros.
    eps
        Added to every variance.
    mixing
        In [0, 1]; a number or a tensor that broadcasts to ``(C,)``.

    Returns
    -------
    torch.Tensor
        Of the shape and dtype of `input`.

    Raises
    ------
    ValueError
        `input` has no positions or another number of channels than the shared statistics; one of
        these is missing; `mixing` is a number outside [0, 1].
    """
    check_channels(input, running_mean, running_var, training=True)
    if input.dim() < 3:
        msg = f"expected input of shape (N, C, *positions), received {tuple(input.shape)}."
        raise ValueError(msg)
    check_share("mixing", mixing)
    dtype = statistics_dtype(input)
    given = running_mean is not None and running_var is not None

    def target(batch: ChannelMoments) -> tuple[Tensor, Tensor]:
        if running_mean is None or running_var is None:
            return batch.mean, batch.var
        return running_mean.to(dtype), running_var.to(dtype)

    weight, bias = in_dtype(weight, dtype), in_dtype(bias, dtype)
    return renormalize_instances(
        input, weight, bias, eps=eps, target=target, mixing=mixing, gradient=not given
    )


def sample_renorm(
    input: Tensor,
    sample: Tensor,
    statistics: SampleStatistics,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float | None = 0.01,
    eps: float = 1e-5,
    *,
    max_kept: tuple[float, float] = (1.0, 0.0),
    mixing: float = 0.0,
    r_max: Bound = 3.0,
    d_max: Bound = 5.0,
    recollection: Recollection | None = None,
) -> Tensor:
    """Normalize each cell by its own sample, and bridge the sample to the population.

    Two bridges stand one behind the other.  In training the cells of a sample are normalized by
    what the minibatch holds of it and renormalized, as by `batch_renorm`, to the sample's moving
    statistics; in evaluation they are normalized by these directly.  Then ::

        y = (r_kept * z + d_kept) * weight + bias

    where (r, d) lead from the sample's moving statistics to the population's, and
    `bioren.bridge.kept_terms` says how much of them is kept.

    Parameters
    ----------
    input
        Shape ``(cells, features)``, floating point.
    sample
        Sample of each cell in ``range(samples)``, shape ``(cells,)``, int64.
    statistics
        The moving statistics of samples and population; updated in place in training, after
        use, unless a value of the minibatch is not finite.  How: see `bioren.nn.grouped`.
    weight, bias
        Shape ``(features,)``; None stands for ones and zeros.
    training
        Whether to normalize by the minibatch and to learn from it.  The only cell of a sample
        in a minibatch is always normalized by the sample's moving statistics, and keeps its
        gradient.
    momentum
        Smallest share of a minibatch in the new statistics of a sample; None weighs all cells
        ever seen alike.
    eps
        Added to every variance; may be 0.  Where a sample, or the population, then has no
        spread at all, features are shifted and never scaled, and stay finite.
    max_kept
        See `bioren.bridge.kept_terms`: (1, 0) keeps nothing of the difference between sample
        and population (normalization per sample), (inf, inf) all (that of the population).
    mixing
        How much is kept of what lies beyond `max_kept`, in [0, 1]: with 0 nothing, with 1 all.
    r_max, d_max
        Limits on the bridge from the minibatch to the sample's moving statistics.
    recollection
        Recognizes forward passes that activation checkpointing runs again.

    Returns
    -------
    torch.Tensor
        Of the shape and dtype of `input`.

    Raises
    ------
    ValueError
        `input` or `sample` has another shape.
    TypeError
        `sample` holds no integers.
    IndexError
        A sample lies outside the range.  Looked at on the CPU only, as looking would hold up a
        GPU, which raises its own error.
    """
    check_cells(input, sample, shape=statistics.sample_mean.shape)
    dtype = statistics_dtype(input)
    x = input.to(dtype)
    moving = statistics.to(dtype)
    if training and len(input) > 0:
        batch = grouped_moments(x, sample, len(statistics.sample_cells))
        known = None if recollection is None else recollection.recall(batch.mean, batch.var)
        if known is None:
            with torch.no_grad():
                moving = first_seen(moving, batch)
                bridge = population_normalizer(moving, eps, max_kept=max_kept, mixing=mixing)
                statistics.assign(updated(moving, batch, momentum))
            bridge = Normalizer(*saved_for_backward(*bridge))
            if recollection is not None:
                limits = (torch.zeros_like(bridge.d[0, 0]) + limit for limit in (r_max, d_max))
                recollection.remember(batch.mean, batch.var, (*bridge, *limits))
        else:
            bridge, (r_max, d_max) = Normalizer(*known[:4]), known[4:]
        # Where the minibatch has no spread of its own, the moving statistics stand in for it.
        std_b = spread(batch.var, eps)  # samples x features
        alone = (batch.cells <= 1)[:, None]
        mean_a = torch.where(alone, bridge.mean, batch.mean)
        std_a = torch.where(alone | (std_b == 0), bridge.std, std_b)
        with torch.no_grad():
            r, d = renorm_terms(mean_a, std_a, bridge.mean, bridge.std)
            r, d = saved_for_backward(*clip_terms(r, d, r_max, d_max))
        bridge = Normalizer(mean_a, std_a, bridge.r * r, bridge.r * d + bridge.d)
    else:
        bridge = population_normalizer(
            moving.with_unseen_as_population(), eps, max_kept=max_kept, mixing=mixing
        )
    weight, bias = in_dtype(weight, dtype), in_dtype(bias, dtype)
    return bridge.apply(x, sample, weight=weight, bias=bias).to(input.dtype)


def check_cells(input: Tensor, sample: Tensor, *, shape: Sequence[int]) -> None:
    """Raise unless `input` is (cells, features) and `sample` one code for each cell.

    `shape` is that of the layer, (samples, features).
    """
    n_samples, n_features = shape
    if input.dim() != 2 or input.shape[1] != n_features:
        msg = f"expected input of shape (cells, {n_features}), received {tuple(input.shape)}."
        raise ValueError(msg)
    if sample.shape != input.shape[:1]:
        msg = (
            f"expected one sample per cell, shape ({len(input)},), "
            f"received shape {tuple(sample.shape)}."
        )
        raise ValueError(msg)
    if sample.dtype not in (torch.int64, torch.int32):
        msg = f"sample must hold int64 codes, received {sample.dtype}; use sample.long()."
        raise TypeError(msg)
    if sample.device.type != "cpu" or torch.compiler.is_compiling() or len(sample) == 0:
        return
    lowest, highest = (int(code) for code in sample.aminmax())
    if lowest < 0 or highest >= n_samples:
        wrong = lowest if lowest < 0 else highest
        msg = f"sample {wrong} is out of range: the layer has samples 0 to {n_samples - 1}."
        raise IndexError(msg)


def check_channels(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, *, training: bool
) -> None:
    if input.dim() < 2:
        msg = (
            f"expected input of shape (N, C) or (N, C, *positions), received {tuple(input.shape)}."
        )
        raise ValueError(msg)
    if (running_mean is None) != (running_var is None):
        msg = "running_mean and running_var must be given together, or neither of them."
        raise ValueError(msg)
    if running_mean is None:
        if not training:
            msg = "evaluation needs running_mean and running_var, received None."
            raise ValueError(msg)
    elif len(running_mean) != input.shape[1]:
        msg = (
            f"expected {len(running_mean)} channels, received input of shape {tuple(input.shape)}."
        )
        raise ValueError(msg)


def evaluate(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Normalize by the running statistics."""
    dtype = statistics_dtype(input)
    mean, var = in_dtype(running_mean, dtype), in_dtype(running_var, dtype)
    weight, bias = in_dtype(weight, dtype), in_dtype(bias, dtype)
    return torch.nn.functional.batch_norm(input, mean, var, weight, bias, eps=eps)


def value_weights(mask: Tensor, input: Tensor) -> ValueWeights:
    """Return `mask` as the weights of the values of `input`.

    Raises
    ------
    ValueError
        `mask` does not broadcast to the rows and positions of `input`.
    """
    rows, positions = tuple(input.shape[:1]), tuple(input.shape[2:])
    shape = tuple(mask.shape)
    if shape == rows:
        mask = mask.reshape(-1, *[1] * (input.dim() - 1))
    elif mask.dim() == input.dim() - 1:
        mask = mask.unsqueeze(1)
    wanted = (*rows, 1, *positions)
    fits = mask.dim() == len(wanted) and all(
        given in (1, size) for given, size in zip(mask.shape, wanted, strict=True)
    )
    if not fits:
        msg = (
            f"expected a mask of shape {rows} or {(*rows, *positions)}, or one that broadcasts to "
            f"the latter, for input of shape {tuple(input.shape)}, received {shape}."
        )
        raise ValueError(msg)
    # Weights are given: the gradient does not go through them.
    return ValueWeights.of(mask.detach().expand(wanted), statistics_dtype(input))


def in_dtype(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return `tensor` in `dtype`, None as it is."""
    # A conversion that changes nothing would be a node of its own in an exported graph.
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)
