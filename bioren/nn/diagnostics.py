"""How far the minibatches of each layer were from its running statistics."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from bioren.nn.renorm import _BatchRenorm
from bioren.nn.tracking import Observer

__all__ = ["LayerDiagnostics", "Monitor"]


class LayerDiagnostics(NamedTuple):
    """Means over channels and training steps of one layer, minibatches that are finite."""

    layer: str
    """The layer's name in the network."""
    steps: int
    """Training steps seen."""
    clipped: float
    """Share of channels of which r or d lay outside the limits, in [0, 1]."""
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
            LayerDiagnostics(name, sums.steps, *sums.means())
            for name, sums in self._sums.items()
            if sums.steps > 0
        ]

    def reset(self) -> None:
        """Forget what was seen."""
        for sums in self._sums.values():
            sums.steps, sums.total = 0, None

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "steps", "clipped", "|log r|", "|d|")]
        rows += [
            (seen.layer, str(seen.steps), f"{seen.clipped:.1%}", *(f"{x:.3f}" for x in seen[3:]))
            for seen in self.layers()
        ]
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

    def __call__(self, r: Tensor, d: Tensor, r_kept: Tensor, d_kept: Tensor) -> None:
        clipped = ((r != r_kept) | (d != d_kept)).to(r.dtype).mean()
        figures = torch.stack(
            [clipped, r.log().abs().mean(), d.abs().mean(), torch.ones_like(clipped)]
        )
        figures = torch.where(figures.isfinite().all(), figures, 0)
        self.steps += 1
        self.total = figures if self.total is None else self.total + figures

    def means(self) -> list[float]:
        """Return the mean of each figure over the minibatches that are finite."""
        *figures, finite = cast("Tensor", self.total).tolist()
        return [figure / max(finite, 1) for figure in figures]

    def __reduce__(self) -> tuple[Any, ...]:
        return _nobody, ()  # a copy of a layer is not watched


def _nobody() -> None:
    return None
