"""What a fit needs of a matrix before anything is estimated, found in one pass over it.

On disk each pass has its price.  In memory it has none, and each step looks for itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bioren.arrays.blocks import Block, Stack
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import Positions, SampleCodes

__all__ = ["Survey", "Surveyor"]


class Survey(NamedTuple):
    """What one pass found.

    Attributes
    ----------
    whole
        Moments of the samples, groups ``(samples,)``.
    variable
        Expression of the variable genes.
    sketch
        Some cells, ascending.
    of_sketch
        Their expression, of all genes.
    """

    whole: Moments
    variable: Block
    sketch: Positions
    of_sketch: Block


class Surveyor:
    """Takes blocks from top to bottom.

    Parameters
    ----------
    codes, n_samples
        Sample of each cell, and their number.
    n_genes
        Number of genes.
    variable
        Columns of the variable ones.
    sketch
        Cells that are to be kept, ascending.
    """

    def __init__(
        self,
        codes: SampleCodes,
        n_samples: int,
        *,
        n_genes: int,
        variable: Positions,
        sketch: Positions,
    ) -> None:
        self.codes = codes
        self.columns, self.sketch = variable, sketch
        self.whole = Moments.empty((n_samples, 1), n_genes)
        self.variable, self.of_sketch = Stack(), Stack()

    def take(self, rows: slice, block: Block) -> None:
        """Look at some rows."""
        alike = np.ones((block.shape[0], 1))
        self.whole = self.whole.with_block(block, self.codes[rows], alike)
        self.variable.append(block[:, self.columns])
        first, last = np.searchsorted(self.sketch, (rows.start, rows.stop))
        self.of_sketch.append(block[self.sketch[first:last] - rows.start])

    def found(self) -> Survey:
        """Return what was found, after the last row."""
        whole = self.whole[:, 0]
        return Survey(whole, self.variable.whole(), self.sketch, self.of_sketch.whole())
