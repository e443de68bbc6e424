"""The genes of a query among those of a reference."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bioren.adata.columns import column_of
from bioren.arrays.shapes import Positions
from bioren.reference.matched_genes import MIN_GENES, MatchedGenes
from bioren.wording import choices, listed

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["match_genes"]

#: Below this share of the variable genes a warning says that the mapping rests on few.
FEW = 0.5

ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}(\.\d+)?", re.IGNORECASE)


def match_genes(
    adata: AnnData, genes: pd.Index, variable: Positions, *, genes_key: str | None = None
) -> MatchedGenes:
    """Find the genes of a query among those of a reference, in any order.

    Parameters
    ----------
    adata
        The query.
    genes
        The reference's genes.
    variable
        Positions of those that tell its states apart.
    genes_key
        Column of ``adata.var`` that names genes as the reference does; None: ``var_names``.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        Too few genes are in common, or one that is occurs more than once.

    Warns
    -----
    UserWarning
        Less than half of the variable genes are there.
    """
    names = _names(adata, genes_key)
    place = genes.get_indexer(names)
    shared = np.flatnonzero(place >= 0)
    twice = names[shared][names[shared].duplicated()].unique()
    if len(twice):
        msg = (
            f"{len(twice)} genes that the reference has occur more than once in the query: "
            f"{listed(twice)}. Keep one of each: adata.var_names_make_unique() renames the others, "
            "which are then left alone."
        )
        raise ValueError(msg)
    n_variable = int(np.isin(variable, place[shared]).sum())
    if n_variable < MIN_GENES:
        msg = (
            f"The query has {n_variable} of the {len(variable)} genes that tell the reference's "
            f"cell states apart, at least {MIN_GENES} are needed. Query: {listed(names, 3)}; "
            f"reference: {listed(genes, 3)}. {_advice(adata, names, genes, genes_key=genes_key)}"
        )
        raise ValueError(msg)
    if n_variable < FEW * len(variable):
        msg = (
            f"The query has only {n_variable} of the {len(variable)} genes that tell the "
            "reference's cell states apart; the others are taken to be at the reference's mean. "
            "The mapping may be coarse: give all genes that were measured, not variable ones only."
        )
        warnings.warn(msg, stacklevel=2)
    shared = shared[np.argsort(place[shared])]
    return MatchedGenes(shared, place[shared])


def _names(adata: AnnData, genes_key: str | None) -> pd.Index:
    if genes_key is None:
        return pd.Index(adata.var_names.astype(str))
    if genes_key not in adata.var:
        msg = f"There is no column {genes_key!r}; {choices('var', genes_key, adata.var)}."
        raise KeyError(msg)
    return pd.Index(column_of(adata.var, genes_key).astype(str))


def _advice(adata: AnnData, names: pd.Index, genes: pd.Index, *, genes_key: str | None) -> str:
    """Say what may be the matter with names that do not fit, and how to repair it."""
    if len(names) == 0:
        return "It has no genes at all."
    others = {key: pd.Index(column_of(adata.var, key).astype(str)) for key in adata.var.columns}
    for column, found in others.items():
        if max(genes.isin(found).mean(), np.mean(found.isin(genes))) > FEW:
            return f"var[{column!r}] names genes as the reference does: genes_key={column!r}."
    if genes_key is not None and adata.var_names.isin(genes).any():
        return "var_names names genes as the reference does: leave out genes_key."
    ours, theirs = _are_ensembl(names), _are_ensembl(genes)
    if ours and theirs:
        return (
            "Both are Ensembl identifiers: drop the versions behind the dot, or check the species."
        )
    if ours or theirs:
        kinds = ("Ensembl identifiers", "gene symbols")
        query, reference = kinds if ours else reversed(kinds)
        return (
            f"The query names genes by {query}, the reference by {reference}: translate the "
            "query's var_names, or name a column of var that holds them: genes_key=..."
        )
    if names.str.upper().isin(genes.str.upper()).any():
        return "They differ in upper and lower case: is the query of another species?"
    return "Nothing of them is alike: is this the right reference?"


def _are_ensembl(names: pd.Index) -> bool:
    return bool(np.mean([ENSEMBL.fullmatch(name) is not None for name in names[:1000]]) > FEW)
