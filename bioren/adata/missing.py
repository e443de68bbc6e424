"""What is said of values that are missing: how many, of which genes, in which samples."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from bioren.arrays.groups import Batches
from bioren.arrays.missing import count_empty, count_measured
from bioren.arrays.shapes import CountBySamplesAndGenes

__all__ = ["missing_message", "warn_missing"]

#: So many samples are named that lack genes altogether.
NAMED = 5


def missing_message(x: Any, batches: Batches | None = None) -> str:
    """Say which values of a matrix are missing, and what can be done about them.

    Parameters
    ----------
    x
        Matrix of shape ``(cells, genes)``, of which some values are NaN.
    batches
        Sample of each cell; None: not known.
    """
    codes = np.zeros(x.shape[0], dtype=np.int64) if batches is None else batches.codes
    measured = count_measured(x, codes, 1 if batches is None else len(batches.names))
    complete = int((measured.sum(axis=0) == len(codes)).sum())
    absent = "" if batches is None else _absent(measured, batches)
    empty = count_empty(x)
    parts = [
        f"{_how_many(measured, len(codes))}.",
        *([f"{absent}, as after an outer join of samples whose genes differ."] if absent else []),
        *([f"{empty:,} cells have no value at all: leave them out."] if empty else []),
        "bioren.pp.bridge takes them as not measured (but not beside a population). Else impute "
        f"them, or keep the {complete:,} genes ({complete / x.shape[1]:.0%}) that are complete: "
        "adata[:, adata.to_df().notna().all()].copy()",
    ]
    return " ".join(parts)


def warn_missing(measured: CountBySamplesAndGenes, batches: Batches) -> None:
    """Warn that values are missing, and of genes that samples lack altogether.

    Parameters
    ----------
    measured
        In how many cells of each sample each gene was measured, ``(samples, genes)``.
    batches
        Sample of each cell.
    """
    absent = _absent(measured, batches)
    msg = (
        f"{_how_many(measured, len(batches.codes))}. They count as not measured, and stay missing."
        + (f" {absent}, and nothing of them is corrected there." if absent else "")
    )
    warnings.warn(msg, stacklevel=4)


def _how_many(measured: CountBySamplesAndGenes, n_cells: int) -> str:
    n_genes = measured.shape[1]
    some = int((measured.sum(axis=0) < n_cells).sum())
    missing = n_cells * n_genes - int(measured.sum())
    share = missing / (n_cells * n_genes)
    return f"{missing:,} values ({share:.1%}) are missing (NaN), of {some:,} of {n_genes:,} genes"


def _absent(measured: CountBySamplesAndGenes, batches: Batches) -> str:
    """Return which samples lack genes altogether, the most of them first; empty if none does."""
    lacking = (measured == 0).sum(axis=1)
    order = [int(s) for s in np.argsort(-lacking, kind="stable") if lacking[s] > 0]
    named = [f"{lacking[s]:,} in sample {batches.names[s]!r}" for s in order[:NAMED]]
    if not named:
        return ""
    more = f" and some in {len(order) - NAMED} more" if len(order) > NAMED else ""
    first, *rest = named
    first = first.replace(" in ", " genes have no value at all in ", 1)
    return ", ".join([first, *rest]) + more
