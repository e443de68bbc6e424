"""What the plots have in common: colors, sizes, labels that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = [
    "DIVERGING",
    "MARKERS",
    "PALETTE",
    "category_style",
    "height_for",
    "label_axis",
    "new_axes",
    "settle",
    "shortened",
]

#: Eight colors that color-blind readers can tell apart (Okabe and Ito 2008), yellow last.
PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#000000",
    "#F0E442",
)

#: With more than eight categories colors come again, in another shape.
MARKERS = ("o", "^", "s", "v", "D", "P", "X", "<")

#: Red and blue, which color-blind readers can tell apart; white is no effect.
DIVERGING = "RdBu_r"

#: Sizes of labels in points, and the share of a tick's room that a line of text may take.
LARGEST, SMALLEST, LINE = 9.0, 5.0, 0.7


def category_style(number: int) -> tuple[str, str]:
    """Return color and marker of category `number`, counted from 0."""
    return PALETTE[number % len(PALETTE)], MARKERS[number // len(PALETTE) % len(MARKERS)]


def height_for(n_samples: int) -> float:
    """Return the height in inches of a figure that lists samples one below the other.

    Beyond some 260 samples it stays: no browser shows longer pictures, and names are left out.
    """
    return min(1.9 + 0.22 * max(n_samples, 4), 60.0)


def new_axes(n_samples: int, width: float, *, columns: int = 1) -> Any:
    """Return axes of a new figure that is `width` inches wide and tall enough for all names."""
    import matplotlib.pyplot as plt

    size = (width, height_for(n_samples))
    return plt.subplots(1, columns, figsize=size, layout="constrained")[1]


def shortened(names: Sequence[str], most: int = 24) -> list[str]:
    """Return names of at most so many characters, or whole ones if two would read the same.

    The middle goes, as ends tell names apart.
    """
    head = most // 2
    short = [
        name if len(name) <= most else f"{name[:head]}…{name[head + 1 - most :]}" for name in names
    ]
    return short if len(set(short)) == len(set(names)) else list(names)


def label_axis(axis: Axis, names: Sequence[str], *, first: Sequence[int] = ()) -> float:
    """Name the positions 0, 1, ... of an axis so that no two names overlap.

    Where they are close the letters get smaller, then names are left out, last those at the
    positions `first`.

    Returns
    -------
    float
        Size of the letters in points.
    """
    room = _room(axis, len(names))
    step = max(1, math.ceil(SMALLEST / (LINE * room)))
    size = min(LARGEST, LINE * room * step)
    coordinates: list[int] = []
    for i in (*first, *range(len(names))):
        if all(abs(i - place) >= step for place in coordinates):
            coordinates.append(i)
    axis.set_ticks(
        coordinates,
        [names[i] for i in coordinates],
        fontsize=size,
        rotation=90 if _horizontal(axis) else 0,
    )
    return size


def settle(ax: Axes) -> None:
    """Have the figure lay itself out, if it does that, so that `ax` has its size."""
    figure = ax.get_figure()
    if isinstance(figure, Figure) and figure.get_layout_engine() is not None:
        figure.draw_without_rendering()


def _horizontal(axis: Axis) -> bool:
    return axis is axis.axes.xaxis


def _room(axis: Axis, n_names: int) -> float:
    """Return the distance of neighboring positions in points."""
    ax: Axes = axis.axes
    extent = ax.get_window_extent()
    pixels = extent.width if _horizontal(axis) else extent.height
    return float(pixels) / ax.figure.dpi * 72 / max(n_names, 1)
