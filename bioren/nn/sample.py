"""The bridge as a layer: cells normalized by their sample, bridged to the population."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bioren.bridge import AffineBridge, kept_terms
from bioren.nn._torch import leaf_of
from bioren.nn.functional import SampleStatistics, check_cells, sample_renorm
from bioren.nn.grouped import population_normalizer, spread
from bioren.nn.recomputation import Recollection, may_run_again
from bioren.nn.schedules import Limits, as_schedule, check_share

if TYPE_CHECKING:
    from bioren.arrays.moments import Moments

__all__ = ["SampleRenorm1d"]


class SampleRenorm1d(nn.Module):
    """Normalize cells by the moving statistics of their samples, bridged to the population.

    In training a sample's cells are normalized by what the minibatch holds of that sample and
    renormalized to its moving statistics, so that a minibatch may hold few cells of it, or one.
    (Values stay right with few cells; their gradient shrinks, as two cells of one sample always
    lie at -1 and 1.  A lone cell has the gradient of evaluation.)  In evaluation the output
    depends on the cell and the buffers alone.

    How moving statistics begin, with a single cell too, and how they and the population's are
    updated: see `bioren.nn.grouped`.  A sample never seen counts in evaluation as the
    population itself: nothing is known, so nothing is corrected.

    Parameters
    ----------
    num_features, num_samples
        Numbers of features and samples.
    eps
        Added to every variance; may be 0.
    momentum
        In (0, 1]: smallest weight of a minibatch in the moving statistics of a sample.  None
        weighs all cells ever seen alike.
    affine
        Whether to learn a weight and a bias per feature, shared by all samples.
    max_kept
        ``(r_max, d_max)``: how much of the difference between sample and population may stay.
        (1, 0) is normalization per sample, (inf, inf) that of the population.
    mixing
        How much stays of the difference beyond `max_kept`, in [0, 1]: 0 normalizes by the
        sample's own statistics, 1 by the population's.
    limits
        Limits on the bridge from minibatch to moving statistics: a schedule or a pair
        ``(r_max, d_max)``.  Moving statistics begin with the data, so no warm-up is needed.
    device, dtype
        Of parameters and buffers.

    Attributes
    ----------
    sample_mean, sample_var
        Moving statistics of the samples, shape ``(num_samples, num_features)``.
    sample_cells
        Cells seen of each sample, shape ``(num_samples,)``, int64.
    running_mean, running_var
        Moments of the population, shape ``(num_features,)``.
    num_batches_tracked
        Number of training batches seen, 0-d int64.

    Raises
    ------
    ValueError
        An argument lies out of range.

    Examples
    --------
    >>> import torch
    >>> layer = SampleRenorm1d(3, num_samples=2)
    >>> layer(torch.randn(5, 3), torch.tensor([0, 0, 1, 0, 1])).shape
    torch.Size([5, 3])
    """

    sample_mean: Tensor
    sample_var: Tensor
    sample_cells: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        num_samples: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        *,
        max_kept: tuple[float, float] = (1.0, 0.0),
        mixing: float = 0.0,
        limits: Limits = (3.0, 5.0),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_options(num_samples, eps, momentum, max_kept=max_kept, mixing=mixing)
        self.num_features = num_features
        self.num_samples = num_samples
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.max_kept = max_kept
        self.mixing = mixing
        self.limits = as_schedule(limits)
        self._recollection = Recollection()

        of: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_parameter(
            "weight", nn.Parameter(torch.ones(num_features, **of)) if affine else None
        )
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(num_features, **of)) if affine else None
        )
        self.register_buffer("sample_mean", torch.zeros(num_samples, num_features, **of))
        self.register_buffer("sample_var", torch.ones(num_samples, num_features, **of))
        counts = torch.zeros(num_samples, device=device, dtype=torch.int64)
        self.register_buffer("sample_cells", counts)
        self.register_buffer("running_mean", torch.zeros(num_features, **of))
        self.register_buffer("running_var", torch.ones(num_features, **of))
        self.register_buffer(
            "num_batches_tracked", torch.zeros((), device=device, dtype=torch.int64)
        )

    @property
    def statistics(self) -> SampleStatistics:
        """The buffers themselves, by name."""
        return SampleStatistics(
            self.sample_mean,
            self.sample_var,
            self.sample_cells,
            self.running_mean,
            self.running_var,
        )

    def forward(self, input: Tensor, sample: Tensor) -> Tensor:
        """Return `input` normalized.

        Parameters
        ----------
        input
            Shape ``(cells, num_features)``, floating point.
        sample
            Sample of each cell, shape ``(cells,)``, int64.

        Returns
        -------
        torch.Tensor
            Of the shape and dtype of `input`.

        Raises
        ------
        ValueError, TypeError, IndexError
            See `bioren.nn.functional.sample_renorm`.
        """
        node = leaf_of(self, input, sample)
        if node is not None:
            return node
        r_max, d_max = self.limits(self.num_batches_tracked)
        output = sample_renorm(
            input,
            sample,
            self.statistics,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
            max_kept=self.max_kept,
            mixing=self.mixing,
            r_max=r_max,
            d_max=d_max,
            recollection=self._recollection if may_run_again() else None,
        )
        if self.training and len(input) > 0 and not self._recollection.running_again:
            self.num_batches_tracked.add_(1)
        return output

    def inverse(self, input: Tensor, sample: Tensor) -> Tensor:
        """Undo the map of evaluation (whatever the mode): `input` is what it put out.

        Parameters
        ----------
        input
            Shape ``(cells, num_features)``.
        sample
            Sample of each cell, shape ``(cells,)``, int64.

        Raises
        ------
        ValueError
            A weight is 0, so that nothing leads back (looked at on the CPU only).
        """
        check_cells(input, sample, shape=self.sample_mean.shape)
        weight = self.weight
        if weight is not None and weight.device.type == "cpu" and not weight.all():
            msg = f"{int((weight == 0).sum())} features have weight 0: nothing leads back."
            raise ValueError(msg)
        dtype = torch.promote_types(input.dtype, torch.float32)
        moving = self.statistics.to(dtype).with_unseen_as_population()
        maps = population_normalizer(moving, self.eps, max_kept=self.max_kept, mixing=self.mixing)
        return maps.undo(input.to(dtype), sample, weight=weight, bias=self.bias).to(input.dtype)

    def bridge(self) -> AffineBridge:
        """Return the map of evaluation on the scale of the values, without weight and bias.

        Returns
        -------
        bioren.AffineBridge
            ``scale`` and ``shift`` of shape ``(num_samples, num_features)``, tensors of at least
            single precision that no gradient reaches.  ``layer.bridge()[sample].apply(x)``
            carries cells to the population's scale, ``layer.bridge().invert()[sample].apply(x)``
            back.
        """
        with torch.no_grad():
            dtype = torch.promote_types(self.sample_mean.dtype, torch.float32)
            moving = self.statistics.to(dtype).with_unseen_as_population()
            source: Any = _Side(moving.sample_mean, spread(moving.sample_var, self.eps))
            target: Any = _Side(moving.running_mean, spread(moving.running_var, self.eps))
            return AffineBridge.between(
                source, target, max_kept=self.max_kept, strength=1 - self.mixing
            )

    def to_reference(self, input: Tensor, sample: Tensor) -> Tensor:
        """Return `input` as if measured in the population: `bridge` applied to each cell.

        Parameters
        ----------
        input
            Shape ``(cells, num_features)``.
        sample
            Sample of each cell, shape ``(cells,)``, int64.
        """
        check_cells(input, sample, shape=self.sample_mean.shape)
        bridge = self.bridge()
        carried: Tensor = AffineBridge(
            bridge.scale.index_select(0, sample), bridge.shift.index_select(0, sample)
        ).apply(input)
        return carried.to(input.dtype)

    @torch.no_grad()
    def load_moments(self, samples: Moments, population: Moments) -> None:
        """Set the buffers to known moments; evaluation is then exactly their bridge.

        A sample without cells counts as never seen.  Training on would replace the population
        by that of the samples.

        Parameters
        ----------
        samples
            Counts of shape ``(num_samples,)``, moments of shape ``(num_samples, num_features)``.
        population
            Moments of shape ``(num_features,)``, of at least one cell.  Variances are taken as
            they are, with the number of cells for divisor.

        Raises
        ------
        ValueError
            A shape differs, the population is empty, or a value is not finite.
        """
        device = self.sample_mean.device
        loaded = SampleStatistics(
            torch.as_tensor(samples.mean, device=device),
            torch.as_tensor(samples.var(), device=device),
            torch.as_tensor(samples.count, device=device).ceil().to(torch.int64),
            torch.as_tensor(population.mean, device=device),
            torch.as_tensor(population.var(), device=device),
        )
        for name, old, new in zip(loaded._fields, self.statistics, loaded, strict=True):
            if new.shape != old.shape:
                msg = f"expected {name} of shape {tuple(old.shape)}, received {tuple(new.shape)}."
                raise ValueError(msg)
            if not new.to(old.dtype).isfinite().all():
                raise ValueError(f"{name} holds a value that is not finite as {old.dtype}.")
        if not (torch.as_tensor(population.count) > 0).all():
            raise ValueError("population holds no cells; the bridge needs at least one.")
        self.statistics.assign(loaded)

    def reset_running_stats(self) -> None:
        """Forget all samples."""
        self.sample_mean.zero_()
        self.sample_var.fill_(1)
        self.sample_cells.zero_()
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Forget all samples, set weights to 1 and biases to 0."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return (
            f"{self.num_features}, num_samples={self.num_samples}, eps={self.eps}, "
            f"momentum={self.momentum}, affine={self.affine}, max_kept={self.max_kept}, "
            f"mixing={self.mixing}, limits={self.limits}"
        )


@dataclass(frozen=True, slots=True)
class _Side:
    """One end of a bridge: the part of `bioren.arrays.moments.Moments` that `between` reads."""

    mean: Tensor
    sd: Tensor

    @property
    def count(self) -> Tensor:
        return torch.ones(())  # samples never seen stand in as the population

    def std(self) -> Tensor:
        return self.sd


def _check_options(
    num_samples: int,
    eps: float,
    momentum: float | None,
    *,
    max_kept: tuple[float, float],
    mixing: float,
) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, received {num_samples}.")
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, received {eps}.")
    if momentum is not None and not 0 < momentum <= 1:
        raise ValueError(f"momentum must be None or lie in (0, 1], received {momentum}.")
    check_share("mixing", mixing)
    nothing = torch.zeros(())
    kept_terms(nothing + 1, nothing, max_kept=max_kept)  # raises unless max_kept is in range
