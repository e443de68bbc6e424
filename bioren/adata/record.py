"""The record in ``adata.uns``, and the tables that are made of it, such as `tl.batch_effects`.

The one place that spells its entries: the batch effects themselves, how they were found, signs of
over-correction, the training history.  Everything survives h5ad and zarr.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from bioren._version import __version__
from bioren.adata.given import check_adata
from bioren.arrays.groups import Batches, BatchKey
from bioren.arrays.shapes import (
    CountBySamplesAndGenes,
    CountPerSample,
    PerDim,
    PerSample,
    SamplesByGenes,
)
from bioren.effects.alignment import Alignment
from bioren.effects.diagnosis import Diagnosis
from bioren.effects.gene_programs import leading_programs
from bioren.reference.mapper import Mapped

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "Effects",
    "MappingRecord",
    "has_diagnosis",
    "has_history",
    "read_diagnosis",
    "read_effects",
    "read_history",
    "read_mapping",
    "with_kept",
    "write_fit",
    "write_mapping",
    "write_record",
]

#: Entries of the record that are tables of samples x genes, as `Alignment` names them.
TABLES = ("r", "d", "standard_error_r", "standard_error_d", "removed")


class Effects(NamedTuple):
    """The batch effects of a record.

    Attributes
    ----------
    batch_key
        Column of ``adata.obs``, or several, that named the samples.
    samples, genes
        Their names.
    cells
        Number of cells, shape ``(samples,)``.
    n_measured
        Number of cells that have a value of the gene, shape ``(samples, genes)``.
    r, d, standard_error_r, standard_error_d, removed
        As in `bioren.effects.alignment.Alignment`, shape ``(samples, genes)``.
    removed_r
        Share of ``log r`` that was removed, shape ``(samples, genes)``; NaN in records of earlier
        versions.
    scales_states
        As in `bioren.effects.alignment.Alignment`, shape ``(samples,)``.
    standardized
        Whether samples were compared within cell states, and not by their plain moments.
    settings
        What was given to the function that found them; what was left at None is missing.
    version
        The version of bioren that found them.
    """

    batch_key: BatchKey
    samples: list[str]
    genes: list[str]
    cells: CountPerSample
    n_measured: CountBySamplesAndGenes
    r: SamplesByGenes
    d: SamplesByGenes
    standard_error_r: SamplesByGenes
    standard_error_d: SamplesByGenes
    removed: SamplesByGenes
    removed_r: SamplesByGenes
    scales_states: PerSample
    standardized: bool
    settings: Mapping[str, Any]
    version: str

    @property
    def removable_r(self) -> SamplesByGenes:
        """Return what of r a line through all of a sample's cells may remove."""
        return self.r ** self.scales_states[:, None]

    def table(self) -> pd.DataFrame:
        """Return a row per sample and gene, with the columns of `bioren.tl.batch_effects`."""
        columns = {
            "sample": pd.Categorical(
                np.repeat(self.samples, len(self.genes)), categories=self.samples
            ),
            "gene": np.tile(np.array(self.genes, dtype=object), len(self.samples)),
            "cells": np.repeat(self.cells, len(self.genes)),
            "n_measured": self.n_measured.ravel(),
            "r": self.r.ravel(),
            "d": self.d.ravel(),
            "standard_error_r": self.standard_error_r.ravel(),
            "standard_error_d": self.standard_error_d.ravel(),
            "standardized": self.standardized,
            "removed": self.removed.ravel(),
            "kept": 1 - self.removed.ravel(),
            "removed_r": self.removed_r.ravel(),
        }
        return pd.DataFrame(columns)


def write_record(
    adata: AnnData,
    key: str,
    batches: Batches,
    *,
    genes: pd.Index,
    alignment: Alignment,
    settings: Mapping[str, Any],
    n_measured: CountBySamplesAndGenes | None = None,
) -> None:
    """Write ``uns[key]``; settings that are None or generators are left out: h5ad has neither.

    Without `n_measured`, every gene was measured in all cells, but where `alignment` says no.
    """
    record: dict[str, Any] = {
        "version": __version__,
        "batch_key": _storable(batches.key),
        "samples": np.array(batches.names, dtype=object),
        "genes": np.array(genes.astype(str), dtype=object),
        "cells": np.bincount(batches.codes, minlength=len(batches.names)),
        "settings": {
            name: _storable(value)
            for name, value in settings.items()
            if value is not None and not isinstance(value, np.random.Generator)
        },
    }
    for name in TABLES:
        record[name] = getattr(alignment, name).astype(np.float32)
    record["removed_r"] = _removed_of_r(alignment).astype(np.float32)
    record["scales_states"] = alignment.scales_states
    if n_measured is None and alignment.unmeasured.any():
        n_measured = np.where(alignment.unmeasured, 0, record["cells"][:, None])
    if n_measured is not None:
        record["n_measured"] = n_measured
    adata.uns[key] = record


def read_effects(adata: AnnData, key: str) -> Effects:
    """Read the batch effects of ``uns[key]``.

    Raises
    ------
    KeyError
        There is no such record, or it comes from a version that wrote other tables.
    """
    check_adata(adata)
    record = adata.uns.get(key)
    if not isinstance(record, Mapping) or not {"samples", "genes", "cells", "r"} <= set(record):
        msg = (
            f"uns[{key!r}] holds no batch effects. Run bioren.tl.integrate or bioren.pp.bridge "
            "first (key=... names the record that bridge wrote under another key_added)."
        )
        raise KeyError(msg)
    missing = [name for name in TABLES if name not in record]
    if missing:
        msg = (
            f"uns[{key!r}] lacks {', '.join(missing)}: an earlier version of bioren wrote it. Run "
            "bioren.tl.integrate or bioren.pp.bridge again."
        )
        raise KeyError(msg)
    samples, genes = (list(map(str, record[name])) for name in ("samples", "genes"))
    settings, key_given = record["settings"], record["batch_key"]
    cells = np.asarray(record["cells"])
    everywhere = np.broadcast_to(cells[:, None], (len(samples), len(genes)))
    return Effects(
        batch_key=key_given if isinstance(key_given, str) else [str(name) for name in key_given],
        samples=samples,
        genes=genes,
        cells=cells,
        n_measured=np.asarray(record.get("n_measured", everywhere)),
        # Earlier versions took every sample to be scaled as a whole.
        scales_states=np.asarray(record.get("scales_states", np.ones(len(samples)))),
        removed_r=np.asarray(record.get("removed_r", np.full(everywhere.shape, np.nan))),
        standardized=bool(settings.get("standardize", True)),
        settings=settings,
        version=str(record.get("version", "unknown")),
        **{name: np.asarray(record[name]) for name in TABLES},
    )


def read_history(adata: AnnData, key: str) -> pd.DataFrame:
    """Read the training history, a row per epoch; see `bioren.network.training.Epoch`.

    Raises
    ------
    KeyError
        There is no such record, or nothing was trained.
    """
    check_adata(adata)
    history = adata.uns.get(key, {}).get("history")
    if history is None:
        msg = (
            f"uns[{key!r}] holds no training history. bioren.tl.integrate writes it (without "
            "use_rep); bioren.pp.bridge trains nothing."
        )
        raise KeyError(msg)
    return with_kept(pd.DataFrame({name: np.asarray(of) for name, of in history.items()}))


def with_kept(history: pd.DataFrame) -> pd.DataFrame:
    """Return a history with the column that earlier versions did not write: the best was kept."""
    if "kept" in history:
        return history
    return history.assign(kept=history.index == history["held_out"].idxmin())


def write_fit(
    adata: AnnData,
    key: str,
    diagnosis: Diagnosis,
    reliability: PerDim,
    variable_genes: pd.Index,
    history: pd.DataFrame,
) -> None:
    """Write what a fit found besides the effects to the record that there is."""
    adata.uns[key]["diagnosis"] = diagnosis._asdict()
    adata.uns[key]["reliability"] = reliability
    adata.uns[key]["variable_genes"] = variable_genes.to_numpy(dtype=object)
    adata.uns[key]["history"] = {name: column.to_numpy() for name, column in history.items()}


class MappingRecord(NamedTuple):
    """What a record holds of how its samples were mapped.

    Attributes
    ----------
    score
        Mean mapping score of each sample's cells; NaN where it could not be learned.
    genes
        How many of the reference's genes the query has, and how many there are.
    variable_genes
        The same of those that tell its states apart.
    model
        Name of the reference's file; empty if it came from none.
    labels
        Names of the kinds of labels that were transferred.
    """

    score: PerSample
    genes: tuple[int, int] | None = None
    variable_genes: tuple[int, int] | None = None
    model: str = ""
    labels: tuple[str, ...] = ()


def write_mapping(adata: AnnData, key: str, mapped: Mapped, *, model: str) -> None:
    """Write how a query was mapped to the record that there is; see `MappingRecord`."""
    known, shared = mapped.reference, mapped.genes.reference
    adata.uns[key]["mapping_score"] = mapped.samples["mapping_score"].to_numpy()
    adata.uns[key]["mapping"] = {
        "genes": np.array([len(shared), len(known.genes)]),
        "variable_genes": np.array(
            [int(np.isin(known.variable, shared).sum()), len(known.variable)]
        ),
        "model": model,
        "labels": np.array(list(mapped.labels), dtype=object),
    }


def read_mapping(adata: AnnData, key: str) -> MappingRecord | None:
    """Return how the samples of a record were mapped; None: they were integrated.

    Records of earlier versions hold the score alone.
    """
    record = adata.uns[key]
    if "mapping_score" not in record:
        return None
    score, about = np.asarray(record["mapping_score"]), record.get("mapping")
    if about is None:
        return MappingRecord(score)
    genes, variable = (
        (int(about[name][0]), int(about[name][1])) for name in ("genes", "variable_genes")
    )
    labels = tuple(map(str, about["labels"]))
    return MappingRecord(score, genes, variable, str(about["model"]), labels)


def read_diagnosis(adata: AnnData, key: str) -> pd.DataFrame:
    """Return the record's signs of over-correction, a row per sample.

    Raises
    ------
    KeyError
        There are none, or an earlier version wrote the effects.
    """
    check_adata(adata)
    record = adata.uns.get(key, {})
    if "diagnosis" not in record:
        msg = f"uns[{key!r}] holds no diagnosis. Run bioren.tl.integrate first (without use_rep)."
        raise KeyError(msg)
    samples = pd.Index(list(map(str, record["samples"])), name="sample")
    columns = {"cells": record["cells"], **record["diagnosis"], "leading_program": ""}
    table = pd.DataFrame(columns, index=samples)
    effects = read_effects(adata, key)
    for name, leads in leading_programs(effects.genes, effects.d, effects.standard_error_d).items():
        table.loc[leads, "leading_program"] = name
    return table


def has_history(adata: AnnData, key: str) -> bool:
    """Return whether the record has the history of a training, of more than its start."""
    return len(adata.uns.get(key, {}).get("history", {}).get("epoch", ())) > 1


def has_diagnosis(adata: AnnData, key: str) -> bool:
    """Return whether the record has signs of over-correction."""
    return "diagnosis" in adata.uns.get(key, {})


def _removed_of_r(alignment: Alignment) -> SamplesByGenes:
    """Return the share of ``log r`` that the bridges remove; 0 where r is 1."""
    log_r = np.log(alignment.r)
    removed = -np.log(alignment.bridges.scale)
    return np.divide(removed, log_r, out=np.zeros_like(log_r), where=np.abs(log_r) > 1e-12)


def _storable(value: Any) -> Any:
    if not isinstance(value, tuple | list):
        return value
    return np.array(value, dtype=object if isinstance(value[0], str) else None)
