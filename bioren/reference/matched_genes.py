"""Genes that a query and a reference have in common."""

from __future__ import annotations

from typing import NamedTuple

from bioren.arrays.shapes import GeneColumns

__all__ = ["MIN_GENES", "MatchedGenes"]

#: Fewer genes than this place no cell.
MIN_GENES = 3


class MatchedGenes(NamedTuple):
    """Genes that query and reference have in common.

    Attributes
    ----------
    query, reference
        Their columns in the query and in the reference, ascending in the latter, so that the
        query's order makes no difference; of one length.
    """

    query: GeneColumns
    reference: GeneColumns
