"""Whether values were standardized gene by gene, as ``sc.pp.scale`` leaves them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from bioren.arrays.blocks import gather_rows, spaced_rows, to_dense
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import PerGene

__all__ = ["warn_standardized"]

#: Rows that are looked at first: few sets have a typical standard deviation near 1 by chance.
SKETCH = 500
NEARLY = (0.7, 1.3)

#: Of what was standardized, this share of the genes that vary has a standard deviation that is 1
#: within a hundredth.  (Clipping, ``max_value=10``, lowers that of rare genes.)  Else one gene in a
#: hundred has it: 1% to 3% of the genes of public single-cell and bulk sets.
EXACTLY, SHARE = 0.01, 0.5

#: Among fewer genes it may be chance.
MIN_GENES = 5


def warn_standardized(x: Any, whole: Moments | None = None) -> None:
    """Warn of values whose genes have a standard deviation of 1, nearly all of them.

    Parameters
    ----------
    x
        Matrix of shape ``(cells, genes)``, any kind that `row_blocks` reads, looked through for
        values that are infinite.
    whole
        Moments of all cells, if `x` holds some of them; None: those of `x`.
    """
    some = to_dense(gather_rows(x, spaced_rows(x.shape[0], SKETCH))).astype(np.float64)
    if np.isnan(some).any():
        return  # a table with holes was standardized, if at all, in another way
    std = _of_varying(some.std(axis=0))
    if len(std) < MIN_GENES or not NEARLY[0] < np.median(std) < NEARLY[1]:
        return
    std = _of_varying((Moments.of(x) if whole is None else whole).std())
    share = float((np.abs(std - 1) < EXACTLY).mean())
    if share < SHARE:
        return
    msg = (
        f"The values look standardized gene by gene: {share:.0%} of {len(std):,} genes have a "
        "standard deviation of 1, as after sc.pp.scale. Genes that hardly vary then weigh as much "
        "as all others, and corrected expression is not on a log scale. Give log-normalized "
        "expression, as it was before scaling: adata.raw.to_adata(), or its layer (layer=...). "
        "For bulk data, center at most."
    )
    warnings.warn(msg, stacklevel=3)


def _of_varying(std: PerGene) -> PerGene:
    return std[std > 0]
