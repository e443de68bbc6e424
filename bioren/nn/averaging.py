"""The gradient of normalization with its means averaged over minibatches.

With z the normalized values and g the gradient of z, that of the input is::

    1 / std_B * (g - mean(g) - z mean(g z))

with means over the minibatch.  In a minibatch of two rows they are mostly noise.  Yan et al.
(2020), *Towards stabilizing batch statistics in backward propagation of batch normalization*,
arXiv:2001.06838, average them over the latest minibatches, and take the values z' = r z + d that
are normalized by the running statistics in the place of z, so that all minibatches speak of the
same values::

    r / std_B * (g - mean(g) - z' mean(g z'))          where r = 1 and d = 0, the same
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bioren.nn._torch import is_readable

__all__ = ["BackwardAverages"]


class BackwardAverages(nn.Module):
    """Means of the latest minibatches' gradients.

    They are no part of the state dict: after loading, the average starts anew.  A gradient that
    is not finite is left out.  Loss scaling should be constant over as many minibatches.

    Parameters
    ----------
    size
        Number of minibatches, at least 1.
    like
        Has the device and the dtype of the means; None stands for torch's defaults.

    Raises
    ------
    ValueError
        `size` is below 1.
    """

    means: Tensor
    """Shape ``(size, 2, channels)``: mean of g and of g z' of each minibatch."""
    seen: Tensor
    """Number of minibatches so far, 0-d int64."""

    def __init__(self, size: int, like: Tensor | None = None) -> None:
        super().__init__()
        if size is True or size < 1 or size != int(size):
            msg = f"average_backward must be a number of minibatches of 1 or more, received {size}."
            raise ValueError(msg)
        self.size = size
        # As large as the gradient turns out to be.
        of: dict[str, Any] = {} if like is None else {"device": like.device, "dtype": like.dtype}
        means = torch.zeros(size, 2, 0, **of)
        seen = torch.zeros((), dtype=torch.int64, device=means.device)
        self.register_buffer("means", means, persistent=False)
        self.register_buffer("seen", seen, persistent=False)

    def reset(self) -> None:
        """Forget all minibatches."""
        self.means.zero_()
        self.seen.zero_()

    @torch.no_grad()
    def averaged(self, new: Tensor) -> Tensor:
        """Let the means of one minibatch, shape ``(2, channels)``, in, and return the average."""
        if self.means.shape[2] != new.shape[1]:
            self.means = new.new_zeros(self.size, *new.shape)
        self.means, self.seen = self.means.to(new), self.seen.to(new.device)
        if is_readable(new):  # a dozen small operations, which start faster in NumPy
            means, latest, seen = self.means.numpy(), new.numpy(), int(self.seen)
            if np.isfinite(latest).all():
                means[seen % self.size] = latest
                self.seen += 1
            return torch.from_numpy(means.sum(0) / min(max(int(self.seen), 1), self.size))
        finite = new.isfinite().all()
        slot = (self.seen % self.size)[None]
        kept = torch.where(finite, new[None], self.means.index_select(0, slot))
        self.means.index_copy_(0, slot, kept)
        self.seen.add_(finite)
        return self.means.sum(0) / self.seen.clamp(1, self.size)

    def replaced(
        self,
        sums: tuple[Tensor, Tensor],
        number: int,
        *,
        weight: Tensor | None,
        r: Tensor | None,
        d: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return what the gradient of ``z * r + d`` owes to the moments, as slope and level in z.

        Parameters
        ----------
        sums
            Over the minibatch, of the output's gradient times z, and of it alone; shape
            ``(channels,)``.
        number
            Values per channel.
        weight, r, d
            Of the layer; None stands for ones and zeros.
        """
        dscale, dshift = sums
        by_d = dshift if weight is None else dshift * weight  # sum of g
        by_r = dscale if weight is None else dscale * weight  # sum of g z
        if r is None or d is None:
            level, slope = self.averaged(torch.stack([by_d, by_r]) / number)
            return slope, level
        mean, product = self.averaged(torch.stack([by_d, by_r * r + by_d * d]) / number)
        return r * r * product, r * (mean + d * product)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return str(self.size)
