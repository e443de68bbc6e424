"""How far the minibatches of each layer were from its running statistics."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from bioren.nn.batch_renorm import _BatchRenorm
from bioren.nn.tracking import Observer

__all__ = ["LayerDiagnostics", "Monitor"]


class LayerDiagnostics(NamedTuple):
    """Means over channels and training steps of one layer, minibatches that are finite."""

    layer: str
    """The layer's name in the network."""
    steps: int
    """Training steps seen."""
    r_max: float
    d_max: float
    """The limits in force at the last of them; with (1, 0) the layer is batch normalization."""
    clipped: float
    """Share of channels of which r or d lay outside the limits, in [0, 1], over the steps at which
    these were open; NaN if they never were."""
    mean_abs_log_r: float
    """Mean of ``|log r|``, before the limits; 0 where deviations are as in the population."""
    mean_abs_d: float
    """Mean of ``|d|``, before the limits, in deviations of the population."""


class Monitor:
    """Watches the Batch Renormalization layers of a network while it is trained.

    Outside of the ``with`` block the layers pay nothing.  Inside, sums stay on the device; they
    are read in `layers`, and only there a GPU is waited for.  What `torch.compile` made is made
    anew when a monitor comes.

    Parameters
    ----------
    module
        Any network, or a single layer.

    Raises
    ------
    ValueError
        There is no such layer in `module`.

    Examples
    --------
    >>> from bioren.nn import BatchRenorm1d
    >>> model = nn.Sequential(nn.Linear(4, 3), BatchRenorm1d(3, limits=(1.5, 0.5)))
    >>> with Monitor(model) as monitor:
    ...     y = model(torch.randn(8, 4))
    >>> [seen.layer for seen in monitor.layers()]
    ['1']
    """

    def __init__(self, module: nn.Module) -> None:
        self._watched = {
            name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchRenorm)
        }
        if not self._watched:
            raise ValueError(
                "the network has no BatchRenorm layer to watch; convert_batchnorm makes some."
            )
        self._sums: dict[str, _Sums] = {}
        self._before: dict[str, Observer | None] = {}

    def __enter__(self) -> Self:
        self._before = {
            name: layer.observe(self._sums.setdefault(name, _Sums()))
            for name, layer in self._watched.items()
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, layer in self._watched.items():
            if isinstance(layer, _BatchRenorm):  # it may have been folded meanwhile
                layer.observe(self._before[name])

    def layers(self) -> list[LayerDiagnostics]:
        """Return what was seen, layer by layer; layers that were not trained are left out."""
        return [
            LayerDiagnostics(name, sums.steps, *sums.figures())
            for name, sums in self._sums.items()
            if sums.steps > 0
        ]

    def reset(self) -> None:
        """Forget what was seen."""
        for sums in self._sums.values():
            sums.steps, sums.total, sums.limits = 0, None, None

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("layer", "steps", "r_max", "d_max", "clipped", "|log r|", "|d|")
        ]
        for seen in self.layers():
            clipped = "closed" if math.isnan(seen.clipped) else f"{seen.clipped:.1%}"
            limits = (f"{seen.r_max:g}", f"{seen.d_max:g}")
            sizes = (f"{seen.mean_abs_log_r:.3f}", f"{seen.mean_abs_d:.3f}")
            rows.append((seen.layer, str(seen.steps), *limits, clipped, *sizes))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if at == 0 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )


class _Sums:
    """Adds up one layer's figures."""

    def __init__(self) -> None:
        self.steps = 0
        self.total: Tensor | None = None
        self.limits: tuple[Tensor, Tensor] | None = None

    def __call__(self, r: Tensor, d: Tensor, r_max: Tensor, d_max: Tensor) -> None:
        is_open = ((r_max > 1) | (d_max > 0)).to(r)
        clipped = (r > r_max) | (r < 1 / r_max) | (d.abs() > d_max)
        figures = torch.stack(
            [
                clipped.to(r.dtype).mean() * is_open,
                is_open,
                r.log().abs().mean(),
                d.abs().mean(),
                torch.ones_like(is_open),
            ]
        )
        figures = torch.where(figures.isfinite().all(), figures, 0)
        self.steps += 1
        self.total = figures if self.total is None else self.total + figures
        self.limits = r_max, d_max

    def figures(self) -> list[float]:
        """Return the last limits, and each mean over the minibatches that are finite."""
        r_max, d_max = cast("tuple[Tensor, Tensor]", self.limits)
        clipped, are_open, log_r, d, finite = cast("Tensor", self.total).tolist()
        clipped = clipped / are_open if are_open > 0 else math.nan
        return [float(r_max), float(d_max), clipped, *(x / max(finite, 1) for x in (log_r, d))]

    def __reduce__(self) -> tuple[Any, ...]:
        return _nobody, ()  # a copy of a layer is not watched


def _nobody() -> None:
    return None
