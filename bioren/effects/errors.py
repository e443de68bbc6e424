"""Standard errors of r and d where expression is not normal.

A variance is the less certain the heavier the tails: the variance of ``n`` normal values has a
relative squared error of ``2 / n``, that of a gene which is detected in one cell of a hundred of
about ``100 / n``.  How much squared deviations vary within states is therefore measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bioren.arrays.blocks import row_blocks, to_dense
from bioren.arrays.groups import TINY
from bioren.arrays.shapes import CellsByStates, PerGene, SampleCodes
from bioren.bridge import AffineBridge
from bioren.effects.state_profile import StateProfile

__all__ = ["NORMAL", "variance_of_squares"]

#: Relative variance of the squared deviations of normal values.
NORMAL = 2.0


def variance_of_squares(
    x: Any,
    codes: SampleCodes,
    share: CellsByStates,
    *,
    bridges: AffineBridge,
    profile: StateProfile,
) -> PerGene:
    """Return the variance of squared deviations within states, relative to their squared mean.

    Parameters
    ----------
    x
        Log-expression of some cells, shape ``(cells, genes)``; NaN where nothing was measured.
    codes
        Their samples.
    share
        Their shares in the states, shape ``(cells, states)``.
    bridges
        From each sample to the reference.
    profile
        The reference, by state.

    Returns
    -------
    numpy.ndarray
        Shape ``(genes,)``; the kurtosis less one, where there is one state.  `NORMAL` where a gene
        does not vary.
    """
    level, within = profile.by_state.mean, profile.by_state.var()
    total = np.nansum if profile.by_state.incomplete else np.sum
    squares, excess = (np.zeros(x.shape[1]) for _ in range(2))
    cells = np.full(x.shape[1], x.shape[0])
    for rows, block in row_blocks(x):
        samples, part = codes[rows], share[rows]
        deviation = to_dense(block) * bridges.scale[samples] + bridges.shift[samples]
        deviation -= part @ level
        np.square(deviation, out=deviation)
        squares += total(deviation, axis=0)
        deviation -= part @ within
        excess += total(np.square(deviation, out=deviation), axis=0)
        if profile.by_state.incomplete:
            cells -= np.isnan(deviation).sum(axis=0)
    mean, variance = squares / np.maximum(1, cells), excess / np.maximum(1, cells)
    return np.where(mean > 0, variance / np.maximum(mean, TINY) ** 2, NORMAL)
