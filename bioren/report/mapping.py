"""What the report says of samples that were mapped onto a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bioren.adata.obs import read_batches
from bioren.adata.record import Effects, MappingRecord
from bioren.reference.confidence import LOW

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["MappingSection", "mapping_section"]

SCORE = "bioren_mapping_score"

#: Rows of a table of transferred labels.
MAX_LABELS = 40


class MappingSection(NamedTuple):
    """The section on mapping.

    Attributes
    ----------
    reference
        File of the reference, or its digest.
    matched
        How many genes were matched; empty if the record does not say it.
    rows
        A row per sample: name, cells, mean score, share of cells below .5 (NaN if not known).
    labels
        Per kind of labels a row for each: name, cells, mean probability, most frequent first.
    """

    reference: str
    matched: str
    rows: list[dict[str, Any]]
    labels: dict[str, list[dict[str, Any]]]


def mapping_section(adata: AnnData, effects: Effects, mapping: MappingRecord) -> MappingSection:
    """Collect what the section says."""
    low = np.full(len(effects.samples), np.nan)
    if SCORE in adata.obs:
        codes = read_batches(adata, effects.batch_key, names=effects.samples).codes
        score = adata.obs[SCORE].to_numpy(dtype=float)
        for sample in range(len(low)):
            of = score[codes == sample]
            known = of[np.isfinite(of)]
            low[sample] = (known < LOW).mean() if len(known) else np.nan
    rows = [
        {"sample": name, "cells": int(cells), "score": float(mean), "low": float(share)}
        for name, cells, mean, share in zip(
            effects.samples, effects.cells, mapping.score, low, strict=True
        )
    ]
    matched = ""
    if mapping.genes is not None and mapping.variable_genes is not None:
        (n, of), (n_variable, of_variable) = mapping.genes, mapping.variable_genes
        matched = (
            f"{n:,} of the reference's {of:,} genes, {n_variable:,} of the {of_variable:,} that "
            "tell its cell states apart"
        )
    reference = mapping.model or str(effects.settings.get("reference", "unknown"))
    return MappingSection(reference, matched, rows, _labels(adata, mapping))


def _labels(adata: AnnData, mapping: MappingRecord) -> dict[str, list[dict[str, Any]]]:
    tables = {}
    for kind in mapping.labels:
        column, probability = f"bioren_{kind}", f"bioren_{kind}_probability"
        if column not in adata.obs or probability not in adata.obs:
            continue
        label = adata.obs[column].astype(str)
        by_label = adata.obs[probability].astype(float).groupby(label)
        count, mean = by_label.size(), by_label.mean()
        tables[kind] = [
            {"label": name, "cells": int(count[name]), "probability": float(mean[name])}
            for name in count.sort_values(ascending=False, kind="stable").index[:MAX_LABELS]
        ]
    return tables
