"""The classifier that carries labels of the reference's cells over to cells of a query."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from bioren.arrays.groups import TINY
from bioren.arrays.shapes import (
    CellsByDims,
    CountPerLabel,
    DimsByLabels,
    LabelCodes,
    PerCell,
    PerLabel,
)

__all__ = ["LabelTransfer"]


class LabelTransfer(NamedTuple):
    """From coordinates in the embedding to labels: multinomial logistic regression.

    It holds no cell, and one number per label and dimension.

    Attributes
    ----------
    names
        The labels.
    weights, level
        Log odds of a label are ``z @ weights + level``; shapes ``(dims, labels)``, ``(labels,)``.
    cells
        How many cells had each label, shape ``(labels,)``.
    """

    names: list[str]
    weights: DimsByLabels
    level: PerLabel
    cells: CountPerLabel

    @classmethod
    def fit(cls, z: CellsByDims, codes: LabelCodes, names: list[str]) -> LabelTransfer:
        """Learn from labeled cells.

        Parameters
        ----------
        z
            Embedding, shape ``(cells, dims)``.
        codes
            Position of each cell's label in `names`, -1 where it has none.
        names
            The labels; those of no cell are left out.
        """
        known = codes >= 0
        found, cells = np.unique(codes[known], return_counts=True)
        dims = z.shape[1]
        names = [names[code] for code in found]
        if len(found) == 1:
            return cls(names, np.zeros((dims, 1)), np.zeros(1), cells)
        unit = max(float(z[known].std()), TINY)
        model = LogisticRegression(max_iter=2000).fit(z[known] / unit, codes[known])
        weights, level = model.coef_.T / unit, model.intercept_
        if len(found) == 2:  # scikit-learn gives the log odds of the second alone
            weights = np.hstack([np.zeros((dims, 1)), weights])
            level = np.concatenate([[0.0], level])
        return cls(names, weights.astype(np.float64), level.astype(np.float64), cells)

    def of_many(self, min_cells: int) -> LabelTransfer | None:
        """Return what is known of labels of so many cells; None if there is none."""
        many = np.flatnonzero(self.cells >= min_cells)
        if len(many) == 0:
            return None
        names = [self.names[i] for i in many]
        return LabelTransfer(names, self.weights[:, many], self.level[many], self.cells[many])

    def predict(self, z: CellsByDims) -> tuple[LabelCodes, PerCell]:
        """Return each cell's most probable label, as its position, and its probability."""
        log_odds = z @ self.weights + self.level
        share = np.exp(log_odds - log_odds.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        return share.argmax(axis=1), share.max(axis=1)
