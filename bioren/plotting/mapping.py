"""``bioren.pl.mapping_scores``: how well a reference knows the cells that were mapped onto it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bioren.adata.obs import read_batches
from bioren.adata.record import read_effects
from bioren.plotting.style import PALETTE, label_axis, new_axes, settle, shortened
from bioren.reference.confidence import LOW

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

__all__ = ["mapping_scores"]

#: Bars of a sample's histogram, and how much of its row the highest one takes.
BARS, HEIGHT = 20, 0.85

SCORE = "bioren_mapping_score"


def mapping_scores(adata: AnnData, *, key: str = "bioren", ax: Axes | None = None) -> Axes:
    """Draw the mapping scores of each sample's cells, as a row of histograms.

    Parameters
    ----------
    adata
        After `bioren.tl.map_query`.
    key
        Name of the record in ``adata.uns``.
    ax
        Where to draw; None: a new figure that is tall enough for all names.

    Returns
    -------
    matplotlib.axes.Axes
        Samples from top to bottom, the lowest mean score first; a vertical stroke marks the mean,
        the dotted line the score of .5, below which a cell looks rather unknown.

    Raises
    ------
    KeyError
        There is no such record, or no mapping score.
    """
    effects = read_effects(adata, key)
    if SCORE not in adata.obs:
        msg = f"obs has no column {SCORE!r}: bioren.tl.map_query writes it."
        raise KeyError(msg)
    ax = ax or new_axes(2 * len(effects.samples), 7.0)
    batches = read_batches(adata, effects.batch_key, names=effects.samples)
    score = adata.obs[SCORE].to_numpy(dtype=float)
    by_sample = [score[batches.codes == s] for s in range(len(effects.samples))]
    by_sample = [of[np.isfinite(of)] for of in by_sample]
    mean = np.array([of.mean() if len(of) else np.inf for of in by_sample])
    order = np.argsort(mean, kind="stable")
    edges = np.linspace(0, 1, BARS + 1)
    for row, sample in enumerate(order):
        count = np.histogram(by_sample[sample], edges)[0]
        height = HEIGHT * count / max(count.max(), 1)
        # Rows count from top to bottom, and bars stand on the lower edge of theirs.
        ax.bar(edges[:-1], -height, 1 / BARS, row + 0.45, align="edge", color=PALETTE[4])
        if np.isfinite(mean[sample]):
            ax.vlines(mean[sample], row + 0.45, row - 0.4, color=PALETTE[0], linewidth=2)
    ax.axvline(LOW, color="0.4", linestyle=":")
    ax.set_xlim(0, 1)
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set(xlabel="mapping score of the cells (stroke: mean)", ylabel="sample (cells)")
    settle(ax)
    short = shortened(effects.samples)
    label_axis(ax.yaxis, [f"{short[i]} ({effects.cells[i]:,})" for i in order])
    return ax
